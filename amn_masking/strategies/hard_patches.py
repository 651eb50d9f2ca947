"""Hard-patch masking: from random patches to those of the largest predicted error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.strategies.adversarial import AdversarialMasking
from amn_masking.strategies.ratios import Ratio


class HardPatchMasking(AdversarialMasking):
    """Learns the order of the patches' errors and masks a growing share of each image by it.

    Wang et al., "Hard Patches Mining for Masked Image Modeling" (HPM, arXiv:2304.05919): estimator
    ``'ranking'``, and a share of the masked patches, from 0 to 0.5 over the course of training,
    that goes to the hardest ones while the others are drawn at random. There a decoder on the
    autoencoder's own features predicts the order, which trains the encoder too, and an averaged
    teacher scores the image; here the masking network does both, alone. In ``eval()`` all masked
    patches are the hardest.

    Args:
        mask_ratio, patch_size, prediction_ratio: as in
            :class:`~amn_masking.strategies.MaskingStrategy`.
        network: as in :class:`AdversarialMasking`.
        random_share: share in [0, 1] of the masked patches to draw uniformly; by default from 1 to
            0.5 over the course of training.
        loss: as in :class:`AdversarialMasking`.

    Raises:
        ValueError: a value out of range.
        TypeError: an argument that the network or the loss does not take.

    Example:
        >>> import torch
        >>> masking = HardPatchMasking(mask_ratio=0.5, patch_size=16)
        >>> masking.set_progress(0.0)  # all patches at random, at first
        >>> masking(torch.rand(2, 3, 64, 64)).mask.sum(1)
        tensor([8., 8.])
    """

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        network: Mapping[str, Any] | nn.Module | None = None,
        random_share: Ratio | None = None,
        loss: Mapping[str, Any] | CombinedAdversarialLoss | None = None,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        if random_share is None:
            random_share = dict(type="linear", start=1.0, end=0.5)
        super().__init__(
            mask_ratio,
            patch_size,
            network,
            estimator=dict(type="ranking", noise=0.0),
            random_share=random_share,
            loss=loss,
            prediction_ratio=prediction_ratio,
        )
