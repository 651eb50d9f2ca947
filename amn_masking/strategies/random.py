"""Random masking, the masked autoencoder's own: the strategy to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from amn_masking.mask import PatchMask
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.thresholds.selection import check_mask_ratio, count_visible


class RandomMasking(MaskingStrategy):
    """Keeps the ``int(L * (1 - mask_ratio))`` patches of smallest uniform noise.

    He et al., "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377). It draws the
    same random numbers as the stock method, so the same seed gives the same mask.

    Args:
        mask_ratio: share of the patches to mask, in (0, 1).
        patch_size: side of a patch in pixels, or (height, width).

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, mask_ratio: float = 0.75, patch_size: int | tuple[int, int] = 16) -> None:
        super().__init__(patch_size)
        self.mask_ratio = check_mask_ratio(mask_ratio)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        grid = self.grid(images)
        length = grid[0] * grid[1]
        num_visible = count_visible(length, self.mask_ratio)
        noise = torch.rand(images.shape[0], length, device=images.device, generator=generator)
        return PatchMask.from_shuffle(noise.argsort(1), num_visible, grid)

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}, {super().extra_repr()}"
