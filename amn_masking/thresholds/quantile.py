"""``quantile``: the same count for every image, MAE's own."""

from __future__ import annotations

import torch
from torch import Tensor

from amn_masking.thresholds.selection import (
    Selection,
    Threshold,
    check_mask_ratio,
    count_visible,
    select,
)


class Quantile(Threshold):
    """tau is the order statistic that masks exactly ``L - int(L * (1 - mask_ratio))`` patches.

    The count is that of He et al., "Masked Autoencoders Are Scalable Vision Learners"
    (arXiv:2111.06377), bit for bit. tau is the largest visible key, so that key > tau is the mask
    wherever no keys are equal; equal keys are ordered at random.

    Args:
        mask_ratio: share of the patches to mask, in (0, 1).

    Raises:
        ValueError: ``mask_ratio`` outside (0, 1).
    """

    def __init__(self, mask_ratio: float) -> None:
        super().__init__()
        self.mask_ratio = check_mask_ratio(mask_ratio)

    def forward(
        self,
        keys: Tensor,
        scores: Tensor,
        grid: tuple[int, int],
        random_share: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Selection:
        length = keys.shape[1]
        num_masked = length - count_visible(length, self.mask_ratio)
        return select(keys, num_masked, grid, random_share, generator)

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}"
