"""Refusals that several parts share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_tensor(value: Any, name: str) -> None:
    """Refuse what is not a tensor.

    Raises:
        TypeError: with the way out.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} expected a torch.Tensor, got {type(value).__name__}; convert it with "
            "torch.as_tensor first"
        )


def check_finite(values: Tensor, message: str) -> None:
    """Refuse NaN and infinity: NaN sorts last and would always be masked.

    On CUDA, and in compiled code, the check is an assertion on the device, which ends the program
    there: reading the answer back would make every step wait.

    Raises:
        ValueError: elsewhere.
    """
    finite = torch.isfinite(values).all()
    if values.device.type == "cuda" or torch.compiler.is_compiling():
        torch._assert_async(finite, message[:254])  # all that CUDA takes
    elif not bool(finite):
        raise ValueError(message)
