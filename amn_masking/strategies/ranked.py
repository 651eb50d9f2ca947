"""Strategies that rank the patches and mask an exact number of them."""

from __future__ import annotations

import torch
from torch import Tensor

from amn_masking.mask import PatchMask
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.thresholds.selection import check_mask_ratio, count_visible, select


class RankedMasking(MaskingStrategy):
    """Masks the ``L - int(L * (1 - mask_ratio))`` patches of largest key; equal keys at random.

    Args:
        mask_ratio: share of the patches to mask, in (0, 1).
        patch_size: side of a patch in pixels, or (height, width).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, mask_ratio: float = 0.75, patch_size: int | tuple[int, int] = 16) -> None:
        super().__init__(patch_size)
        self.mask_ratio = check_mask_ratio(mask_ratio)

    def keys(self, images: Tensor, num_masked: int, generator: torch.Generator | None) -> Tensor:
        """``(B, L)`` float32; larger is masked first.

        Args:
            images: ``(B, C, H, W)``.
            num_masked: how many patches of each image will be masked.
            generator: source of all randomness, on the images' device.
        """
        raise NotImplementedError

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        grid = self.grid(images)
        num_masked = grid[0] * grid[1] - count_visible(grid[0] * grid[1], self.mask_ratio)
        keys = self.keys(images, num_masked, generator)
        return select(keys, num_masked, grid, 0.0, generator).patch_mask

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}, {super().extra_repr()}"
