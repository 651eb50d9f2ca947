"""Refusals that several parts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from amn_masking.patches import grid_size, times

try:
    from torch.compiler import is_compiling
except ImportError:  # before torch 2.3
    from torch._dynamo import is_compiling

if TYPE_CHECKING:
    from amn_masking.mask import PatchMask


def check_tensor(value: Any, name: str) -> None:
    """Raise TypeError for what is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} expected a torch.Tensor, got {type(value).__name__}; convert it with "
            "torch.as_tensor first"
        )


def check_finite(values: Tensor, message: str) -> None:
    """Refuse NaN and infinity: NaN sorts last and would always be masked.

    On CUDA, and in compiled code, the check is an assertion on the device, which ends the program
    there: reading the answer back would make every step wait.

    Args:
        message: of at most 254 characters, all that CUDA takes.

    Raises:
        ValueError: elsewhere.
    """
    finite = torch.isfinite(values).all()
    if values.device.type == "cuda" or is_compiling():
        torch._assert_async(finite, message[:254])
    elif not bool(finite):
        raise ValueError(message)


def check_tokens(patch_mask: PatchMask, tokens: Tensor, count: int, symbol: str) -> None:
    """Refuse tokens that are not ``(B, count, D)``, one per patch (L) or per visible patch (N).

    Raises:
        TypeError: not a tensor.
        ValueError: of another shape.
    """
    check_tensor(tokens, "tokens")
    if tokens.dim() == 3 and tokens.shape[:2] == (patch_mask.mask.shape[0], count):
        return
    hint = "the strategy's patch_size has to be the encoder's"
    if tokens.dim() == 3 and tokens.shape[1] > count:
        extra = tokens.shape[1] - count
        hint = f"take prefix tokens (class token, registers) off first, tokens[:, {extra}:]"
    raise ValueError(
        f"expected tokens of shape (B, {symbol}, D) = ({len(patch_mask.mask)}, {count}, D) for a "
        f"{times(patch_mask.grid)} grid with {patch_mask.num_visible} visible, got "
        f"{tuple(tokens.shape)}; {hint}"
    )


def check_grid_of(
    patch_mask: PatchMask,
    images: Tensor,
    patch_size: Sequence[int],
    host: str,
    own_grid: Sequence[int] | None = None,
) -> None:
    """Refuse images whose patches are not the ones of the mask, or not the host's.

    Args:
        images: ``(B, C, H, W)``, or of one or three dimensions.
        patch_size: (height, width) in pixels of the host's patches.
        host: who is to use the mask, for the message.
        own_grid: (rows, columns) that the host is built for; None where it takes any.

    Raises:
        ValueError: another batch size or grid; a transposed grid too.
    """
    batch, _, *size = images.shape
    patch_size = tuple(patch_size)
    grid = grid_size(size, patch_size)
    if own_grid is not None and grid != tuple(own_grid):
        fitting = [parts * side for parts, side in zip(own_grid, patch_size, strict=False)]
        raise ValueError(
            f"images of {times(size)} pixels have {times(grid)} patches of {patch_size} "
            f"pixels, but {host} is built for {times(own_grid)}; resize them to "
            f"{times(fitting)}, or build it for theirs"
        )
    expected = (batch, *grid)
    got = (patch_mask.mask.shape[0], *patch_mask.grid)
    if got != expected:
        raise ValueError(
            f"{host} expected a mask of (B, *grid) = {expected} for images of "
            f"{tuple(images.shape)} and patches of {patch_size} pixels, got {got}; make it "
            f"from the same images with a strategy of patch_size={patch_size}"
        )


def check_honoured(valid: Tensor | None, of_mask: Tensor | None, strategy: str) -> None:
    """Refuse a mask that says nothing of the patches without data that its strategy was given.

    Raises:
        ValueError: ``valid`` was given, and the mask has none.
    """
    if valid is not None and of_mask is None:
        raise ValueError(
            f"{strategy} was given valid=, but its PatchMask has no `valid`, so patches without "
            "data would be masked and counted; set it in the mask (RankedMasking does), or give "
            "images without holes"
        )
