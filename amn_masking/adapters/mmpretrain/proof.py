"""Proof that a method took the mask that was put in its way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from mmpretrain import __version__
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from amn_masking.adapters.overrides import overridden

FAULT = (
    "so the mask that the adversary is rewarded for and that the log describes would not be the "
    "one that was used"
)


@contextmanager
def asked(owner: nn.Module, /, **stand_ins: Any) -> Iterator[None]:
    """For the duration, attributes of ``owner`` are replaced; refuses an owner that lacks them.

    Afterwards it must have called those that are functions.
    """
    names = {name for name, value in stand_ins.items() if callable(value)}
    called: set[str] = set()

    def noting(name: str, function: Callable) -> Callable:
        @wraps(function, assigned=())
        def note(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return function(*args, **kwargs)

        return note

    for name in stand_ins:
        if not hasattr(owner, name):
            raise ValueError(not_taken(owner, name, "has none"))
    with overridden(owner, **{k: noting(k, v) if k in names else v for k, v in stand_ins.items()}):
        yield
    for name in sorted(names - called):
        raise ValueError(not_taken(owner, name, "did not call it"))


def not_taken(owner: nn.Module, name: str, what: str) -> str:
    """The sentence for a mask that ``owner`` did not take."""
    return (
        f"masking= expected {type(owner).__name__} to make its mask by {name}, as mmpretrain 1.2 "
        f"and 1.3 do, but this one (mmpretrain {__version__}) {what}, {FAULT}. Give "
        "it one of that name that it uses, or override inject() in a subclass of the method"
    )


class AskedSample(DataSample):
    """A data sample that notes whether its mask was asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name == "mask":
            object.__setattr__(self, "was_asked", True)  # no field: it is not to be copied
        return super().__getattribute__(name)


def with_masks(samples: Iterable[DataSample], masks: Tensor) -> list[DataSample]:
    """Copies of the samples, with these masks in them."""
    return [
        AskedSample(metainfo=sample.metainfo, **dict(sample.items())).set_mask(mask)
        for sample, mask in zip(samples, masks, strict=True)
    ]


def check_asked(method: nn.Module, samples: Iterable[DataSample]) -> None:
    """Refuse a method that did not look at the masks in its samples."""
    for sample in samples:
        if isinstance(sample, AskedSample) and "was_asked" not in vars(sample):
            raise ValueError(not_taken(method, "the field 'mask' of the data samples", "left it"))


@contextmanager
def compared(
    encoder: nn.Module, said: Callable[[tuple, dict, Any], Tensor | None], expected: Tensor
) -> Iterator[None]:
    """For the duration, the mask that an encoder was called with, or returns, must be this one.

    It reads the masks back from the device, so it is for a model's first step.

    Args:
        encoder: the backbone.
        said: gives that mask, see :meth:`MaskedMethod.encoder_mask`.
        expected: the mask that was put in its way, 1 = masked.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        mask = said(args, kwargs, output)
        if mask is not None:
            seen.append(mask)

    with encoder.register_forward_hook(look, with_kwargs=True):
        yield
    for mask in seen:
        if mask.numel() != expected.numel() or not torch.equal(
            mask.reshape(expected.shape).to(expected), expected
        ):
            raise ValueError(
                f"{type(encoder).__name__} was given a mask of {tuple(expected.shape)} that hides "
                f"{expected.float().mean():.3g} and used one of {tuple(mask.shape)} that hides "
                f"{mask.float().mean():.3g}, at other positions, {FAULT}. Let it use what it is "
                "given, or override inject() and encoder_mask() in a subclass of the method"
            )
