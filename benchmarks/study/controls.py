"""Controls of the study: masks that look at the image and learn nothing."""

from __future__ import annotations

import torch
from mmpretrain.registry import MODELS
from torch import Generator, Tensor

from amn_masking.patches import patchify, pool_to_patches
from amn_masking.strategies.ranked import RankedMasking

NOISY = 0.25  # of the roughest patch's roughness: a quarter of a patch of noise, beside none


@MODELS.register_module()
class LeastVarianceMasking(RankedMasking):
    """Masks the patches whose pixels vary least: what is easy, without a network that learns it."""

    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """Minus the variance of each patch, over its pixels and colours; ``(B, L)``."""
        return -patchify(images, self.patch_size).float().var(-1)


@MODELS.register_module()
class NoiseMasking(RankedMasking):
    """Masks the patches with noise before the others, or after them; among themselves at random.

    Args:
        mask_ratio, patch_size: as in :class:`RankedMasking`.
        hide: whether noise comes first.
    """

    def __init__(
        self,
        mask_ratio: float | None = None,
        patch_size: int | tuple[int, ...] = 16,
        hide: bool = True,
    ) -> None:
        super().__init__(mask_ratio, patch_size)
        self.hide = hide

    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """In [0, 1) where there is noise, if it is to be hidden, and below 0 elsewhere; ``(B, L)``.

        Neighbouring pixels of noise do not go together: their difference's mean square over a patch
        is its roughness.
        """
        rough = torch.zeros_like(images[:, :1])
        for dim in (-2, -1):
            rough += (images - images.roll(1, dim)).square().mean(1, keepdim=True)
        rough[..., 0, :] = rough[..., :, 0] = 0.0  # their neighbours are of the other border
        rough = pool_to_patches(rough, self.grid(images))
        noisy = rough > NOISY * rough.amax(1, keepdim=True)
        chance = torch.rand(rough.shape, generator=generator, device=images.device)
        return chance - (noisy != self.hide).float()
