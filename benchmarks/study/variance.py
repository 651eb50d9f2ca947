"""A control of the study: masks that look at the image and learn nothing."""

from __future__ import annotations

import torch
from mmpretrain.registry import MODELS
from torch import Tensor

from amn_masking.patches import patchify
from amn_masking.strategies.ranked import RankedMasking


@MODELS.register_module()
class LeastVarianceMasking(RankedMasking):
    """Masks the patches whose pixels vary least: what is easy, without a network that learns it."""

    def priorities(
        self, images: Tensor, num_masked: int, generator: torch.Generator | None
    ) -> Tensor:
        """Minus the variance of each patch, over its pixels and colours; ``(B, L)``."""
        return -patchify(images, self.patch_size).float().var(-1)
