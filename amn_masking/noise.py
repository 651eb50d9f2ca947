"""Random numbers that masks are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GOLDEN = (math.sqrt(5) - 1) / 2


def uniform(
    shape: Sequence[int],
    device: torch.device,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1).

    Raises:
        TypeError: ``generator`` is not a ``torch.Generator``.
    """
    return torch.rand(tuple(shape), device=device, dtype=dtype, **source(generator))


def normal(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Numbers of the standard normal distribution, float32; raises as :func:`uniform`."""
    return torch.randn(tuple(shape), device=device, **source(generator))


def source(generator: torch.Generator | None) -> dict[str, Any]:
    """The keyword ``generator``, left out if there is none.

    torch.compile cannot trace ``generator=None`` where a size is symbolic.
    """
    if generator is None:
        return {}
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            "generator expected a torch.Generator on the images' device, such as "
            f"torch.Generator(device).manual_seed(0), got {type(generator).__name__}"
        )
    return {"generator": generator}


def gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of the shape of ``like``, finite for every draw."""
    tiny = torch.finfo(like.dtype).tiny
    # The numbers are in [0, 1): both logarithms need a floor.
    chance = uniform(like.shape, like.device, generator, like.dtype).clamp_min(tiny)
    return -torch.log((-torch.log(chance)).clamp_min(tiny))


def tie_breaks(like: Tensor, fixed: bool, generator: torch.Generator | None = None) -> Tensor:
    """``(B, L)`` numbers in [0, 1) that order patches of equal priority.

    Args:
        like: ``(B, L)``.
        fixed: the same well-spread order for every image and call, for ``eval()``: multiples of
            the golden ratio, of which no two within a row are equal. Else drawn anew.
        generator: source of the drawn ones.
    """
    if not fixed:
        return uniform(like.shape, like.device, generator)
    steps = torch.arange(like.shape[1], device=like.device, dtype=torch.float64)
    return (steps * GOLDEN).frac().to(torch.float32).expand_as(like)
