"""What every threshold shares: order the patches, cut the order, say where the cut is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amn_masking.mask import PatchMask, longest_row


@dataclass(eq=False)
class Selection:
    """A hard choice of patches.

    Attributes:
        patch_mask: the mask, without a surrogate yet.
        tau: ``(B, 1)`` the threshold on the scale of the keys: masked where key > tau. For free
            counts with the gradient of the scores that it was made from.
        random: ``(B, L)`` bool, patches that were masked at random; None if there are none.
        free_counts: whether the count came from tau, and not tau from the count.
    """

    patch_mask: PatchMask
    tau: Tensor
    random: Tensor | None = None
    free_counts: bool = False


class Threshold(nn.Module):
    """Turns keys, the patch logits with any exploration noise, into a :class:`Selection`.

    Attributes:
        free_counts: whether images of one batch may mask different numbers of patches.
    """

    free_counts: bool = False

    def forward(
        self,
        keys: Tensor,
        scores: Tensor,
        grid: tuple[int, int],
        random_share: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Selection:
        """Choose the patches to mask.

        Args:
            keys: ``(B, L)`` finite, no gradient; larger is masked first.
            scores: ``(B, L)`` in (0, 1), the scores without noise, with a gradient.
            grid: patches per column and per row.
            random_share: share in [0, 1] of each image's masked patches to draw uniformly.
            generator: source of the tie-breaks and of the random share.
        """
        raise NotImplementedError

    def observe(self, error: Tensor, patch_mask: PatchMask) -> None:
        """Told the ``(B, L)`` error of each training step's masks."""


def check_mask_ratio(mask_ratio: float) -> float:
    """The ratio, if it is one.

    Raises:
        ValueError: outside (0, 1).
        TypeError: not a number.
    """
    if isinstance(mask_ratio, bool) or not isinstance(mask_ratio, (int, float)):
        raise TypeError(f"mask_ratio must be a number in (0, 1), got {mask_ratio!r}")
    if not 0 < mask_ratio < 1:
        raise ValueError(
            f"mask_ratio is the share of patches to mask and must lie in (0, 1), got {mask_ratio}"
        )
    return mask_ratio


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


def order(keys: Tensor, generator: torch.Generator | None) -> Tensor:
    """``(B, L)`` patches by ascending key; equal keys in random order.

    A sort alone would keep the first of equal patches visible. So the patches are shuffled before
    it.
    """
    noise = torch.rand(keys.shape, device=keys.device, generator=generator)
    shuffle = noise.argsort(1)
    return shuffle.gather(1, keys.gather(1, shuffle).argsort(1))


def select(
    keys: Tensor,
    num_masked: int | Tensor,
    grid: tuple[int, int],
    random_share: float,
    generator: torch.Generator | None,
) -> Selection:
    """Mask each image's ``num_masked`` patches of largest key, or a share of them at random.

    Args:
        keys: ``(B, L)``.
        num_masked: one count for all images, or ``(B,)`` int64.
        grid: patches per column and per row.
        random_share: share of the masked patches to draw uniformly, before the others.
        generator: source of randomness.
    """
    length = keys.shape[1]
    counts = num_masked[:, None] if isinstance(num_masked, Tensor) else num_masked
    random = None
    ranked = keys
    if random_share > 0:
        noise = torch.rand(keys.shape, device=keys.device, generator=generator)
        drawn = (
            (counts * random_share).round().long()
            if isinstance(counts, Tensor)
            else round(counts * random_share)
        )
        random = noise.argsort(1).argsort(1) < drawn
        ranked = keys.masked_fill(random, float("inf"))
    ids_shuffle = order(ranked, generator)
    if isinstance(num_masked, Tensor):
        visible = length - num_masked
        num_visible, visible_counts = longest_row(visible)
        last_visible = (visible - 1)[:, None]
    else:
        num_visible, visible_counts = length - num_masked, None
        last_visible = torch.full_like(ids_shuffle[:, :1], num_visible - 1)
    patch_mask = PatchMask.from_shuffle(ids_shuffle, num_visible, grid, visible_counts)
    tau = keys.gather(1, ids_shuffle.gather(1, last_visible))
    return Selection(patch_mask, tau, random)
