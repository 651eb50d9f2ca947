"""Controls of the study: masks that look at the image and learn nothing."""

from __future__ import annotations

import torch
from mmpretrain.registry import MODELS
from torch import Generator, Tensor
from torch.nn import functional as F

from amn_masking.patches import patchify, pool_to_patches
from amn_masking.strategies.ranked import RankedMasking

SQUARE = 9  # side of the shapes' noise, in pixels
NOISY = 0.1  # of a patch: with less noise than that it counts as one without


@MODELS.register_module()
class LeastVarianceMasking(RankedMasking):
    """Masks the patches whose pixels vary least: what is easy, without a network that learns it."""

    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """Minus the variance of each patch, over its pixels and colours; ``(B, L)``."""
        return -patchify(images, self.patch_size).float().var(-1)


@MODELS.register_module()
class NoiseMasking(RankedMasking):
    """Masks the patches with noise before the others, or after them; among themselves at random.

    For pictures with one square of noise, of which a crop may have cut a part off.

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

        The pixels of noise do not go with their neighbours: the square is where the differences
        are largest in all.
        """
        rough = torch.zeros_like(images[:, :1])
        for dim in (-2, -1):
            rough += (images - images.roll(1, dim)).square().mean(1, keepdim=True)
        rough[..., 0, :] = rough[..., :, 0] = 0.0  # their neighbours are of the other border
        # Of the square a crop may have left four pixels: windows reach over the border.
        inside = F.avg_pool2d(rough, SQUARE, 1, padding=SQUARE // 2)
        size = inside.shape[-2:]
        top = F.one_hot(inside.flatten(1).argmax(1), size.numel()).float().unflatten(1, (1, *size))
        square = F.max_pool2d(top, SQUARE, 1, padding=SQUARE // 2)
        noisy = pool_to_patches(square, self.grid(images)) > NOISY
        chance = torch.rand(noisy.shape, generator=generator, device=images.device)
        return chance - (noisy != self.hide).float()
