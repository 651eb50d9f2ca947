"""Random masking, the masked autoencoder's own: the strategy to beat."""

from __future__ import annotations

import math

from torch import Generator, Tensor

from amn_masking.counts import count_visible
from amn_masking.mask import PatchMask
from amn_masking.noise import uniform
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.strategies.ratios import Ratio
from amn_masking.thresholds.base import Candidates


class RandomMasking(MaskingStrategy):
    """Keeps the ``int(L * (1 - mask_ratio))`` patches of smallest uniform noise.

    He et al., "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377). It draws the
    same random numbers as the stock method, so the same seed gives the same mask. It is random by
    nature, in ``eval()`` too, as the stock method is.

    Args:
        mask_ratio, patch_size, prediction_ratio: as in :class:`MaskingStrategy`.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> import torch
        >>> patch_mask = RandomMasking(mask_ratio=0.75, patch_size=16)(torch.rand(2, 3, 64, 64))
        >>> patch_mask.mask.sum(1)
        tensor([12., 12.])
    """

    takes_ratio = True

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__(patch_size, mask_ratio, prediction_ratio=prediction_ratio)

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        grid = self.grid(images)
        self.mask_made()
        length = math.prod(grid)
        num_visible = count_visible(length, self.mask_ratio)
        noise = uniform((images.shape[0], length), images.device, generator)
        if valid is not None:
            candidates = Candidates(
                noise, grid, valid=self.valid_patches(valid, images), generator=generator
            )
            return candidates.select(length - num_visible).patch_mask
        return PatchMask.from_shuffle(
            noise.argsort(1),
            num_visible,
            grid,
            num_predicted=self.count_predicted(length),
        )
