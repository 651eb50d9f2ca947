"""How many patches are masked: MAE's counts, bit for bit, and their bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_ratio_range(ratio_range: tuple[float, float]) -> tuple[float, float]:
    """The range as a pair.

    Raises:
        ValueError: not two numbers with 0 <= low <= high <= 1.
    """
    try:
        low, high = map(float, ratio_range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low <= high <= 1:
        raise ValueError(
            "ratio_range expected two numbers (low, high), the least and the largest share of "
            f"masked patches, 0 <= low <= high <= 1, such as (0.05, 0.95), got {ratio_range!r}"
        )
    return low, high


def count_visible(length: int, mask_ratio: float) -> int:
    """MAE's count, bit for bit: ``int(L * (1 - mask_ratio))`` visible patches of ``L``.

    Raises:
        ValueError: no patch would be visible, or none masked.
    """
    num_visible = int(length * (1 - mask_ratio))
    if not 0 < num_visible < length:
        missing = "visible" if num_visible == 0 else "masked"
        raise ValueError(
            f"mask_ratio={mask_ratio} of {length} patches leaves none {missing}; choose a ratio "
            f"with 0 < int({length} * (1 - mask_ratio)) < {length}, or images with more patches"
        )
    return num_visible


def count_masked(length: int, mask_ratio: float) -> int:
    """The other patches, ``L - int(L * (1 - mask_ratio))``; raises as :func:`count_visible`."""
    return length - count_visible(length, mask_ratio)


def count_range(length: int, ratio_range: tuple[float, float]) -> tuple[int, int]:
    """Least and most masked patches of ``L`` whose share lies in ``ratio_range``.

    At least one patch is always masked and one visible.

    Raises:
        ValueError: no count lies in the range.
    """
    low, high = ratio_range
    # 1e-9 keeps a bound that is a whole number of patches from being rounded away.
    least = max(1, math.ceil(low * length - 1e-9))
    most = min(length - 1, math.floor(high * length + 1e-9))
    if least > most:
        raise ValueError(
            f"no number of masked patches out of {length} lies in ratio_range={ratio_range} with "
            "one visible and one masked; widen it"
        )
    return least, most


def check_enough_valid(valid: Tensor, num_masked: int | Tensor) -> None:
    """Raise ValueError where an image has no more valid patches than are to be masked.

    Args:
        valid: ``(B, L)`` bool.
        num_masked: one count for all images, or ``(B, 1)``.
    """
    number = valid.sum(1, keepdim=True)
    short = (number <= num_masked) | (number < 2)
    if bool(short.any()):
        rows = short.flatten().nonzero().flatten().tolist()
        raise ValueError(
            f"each image needs more valid patches than are masked, but images {rows} of the "
            f"batch have {number[rows, 0].tolist()} valid of {valid.shape[1]} patches; "
            "lower mask_ratio, take a threshold with free counts, or leave these images out"
        )


def longest_row(visible_counts: Tensor) -> tuple[int, Tensor | None]:
    """The largest count, and the counts themselves, or None where all are equal.

    Reads the counts, ``(B,)``, back to the host: free counts cost one synchronisation.
    """
    least, most = torch.aminmax(visible_counts)
    smallest, largest = torch.stack([least, most]).tolist()
    return largest, None if smallest == largest else visible_counts
