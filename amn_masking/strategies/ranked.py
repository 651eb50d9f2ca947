"""Strategies that rank the patches and mask an exact number of them."""

from __future__ import annotations

import torch
from torch import Tensor

from amn_masking.checks import check_finite
from amn_masking.counts import count_masked
from amn_masking.mask import PatchMask
from amn_masking.patches import fill_invalid
from amn_masking.strategies.base import MaskingStrategy, Ratio
from amn_masking.thresholds.base import Candidates


class RankedMasking(MaskingStrategy):
    """Masks the ``L - int(L * (1 - mask_ratio))`` patches of highest priority; ties at random.

    One's own is a subclass that says which patches come first::

        class BrightestFirst(RankedMasking):
            def priorities(self, images, num_masked, generator):
                return pool_to_patches(images, self.grid(images))

    Args:
        mask_ratio: share of the patches to mask, in (0, 1), or a schedule of it.
        patch_size: side of a patch in pixels, or (height, width).

    Raises:
        ValueError: a value out of range; in ``forward``, priorities that are not finite.
    """

    def __init__(self, mask_ratio: Ratio = 0.75, patch_size: int | tuple[int, int] = 16) -> None:
        super().__init__(patch_size, mask_ratio)

    def priorities(
        self, images: Tensor, num_masked: int, generator: torch.Generator | None
    ) -> Tensor:
        """``(B, L)`` float32; larger is masked first.

        Args:
            images: ``(B, C, H, W)``.
            num_masked: how many patches of each image will be masked.
            generator: source of all randomness, on the images' device.
        """
        raise NotImplementedError

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        valid: Tensor | None = None,
    ) -> PatchMask:
        grid = self.grid(images)
        valid = self.valid_patches(valid, images)
        images = fill_invalid(images, valid, grid)
        num_masked = count_masked(grid[0] * grid[1], self.mask_ratio)
        priorities = self.priorities(images, num_masked, generator).float()
        check_finite(
            priorities,
            f"{type(self).__name__} expected finite priorities, got NaN or infinity; do the images "
            "hold NaN (nodata)? Then say which patches are valid: masking(images, valid=...), in "
            "mmpretrain the data samples' field 'valid'",
        )
        candidates = Candidates(
            priorities,
            grid,
            valid=valid,
            deterministic=not self.training,
            generator=generator,
        )
        return candidates.select(num_masked).patch_mask
