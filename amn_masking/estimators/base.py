"""What every estimator has: noise on the logits, a surrogate mask, an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from amn_masking.mask import PatchMask
from amn_masking.thresholds.selection import Selection


class Estimator(ABC):
    """How the masking network's logits get a gradient through a hard mask."""

    @abstractmethod
    def keys(self, logits: Tensor, free_counts: bool, generator: torch.Generator | None) -> Tensor:
        """``(B, L)`` keys for the threshold: the logits with exploration noise, no gradient.

        Args:
            logits: ``(B, L)``.
            free_counts: whether the threshold leaves the count free.
            generator: source of the noise.
        """

    @abstractmethod
    def surrogate(self, logits: Tensor, keys: Tensor, selection: Selection) -> Tensor:
        """``(B, L)`` equal to the mask bit for bit, with the estimator's gradient to the logits.

        Args:
            logits: ``(B, L)`` with a gradient.
            keys: ``(B, L)`` what the threshold saw.
            selection: what the threshold chose.
        """

    def objective(self, error: Tensor, patch_mask: PatchMask) -> Tensor:
        """sum((sg(l) - b) * (surrogate - m)) / K over each image's masked patches, batch mean.

        A scalar of value 0. Visible patches count for nothing: a masked autoencoder's prediction
        there is untrained. b is :meth:`baseline`, K the image's number of masked patches.

        Args:
            error: ``(B, L)`` per-patch error l.
            patch_mask: the mask that the error was made under.
        """
        mask = patch_mask.mask
        error = error.detach().float()
        advantage = mask * (error - self.baseline(error, mask))
        # The surrogate minus its own value: 0 for every patch, whatever the mask.
        change = patch_mask.surrogate - patch_mask.surrogate.detach()
        return ((advantage * change).sum(1) / mask.sum(1)).mean()

    def baseline(self, error: Tensor, mask: Tensor) -> Tensor:
        """``(B, 1)`` b: the mean error of the image's own masked patches."""
        return (error * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def gumbel_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise of the shape of ``like``, finite for every draw."""
    uniform = torch.rand(like.shape, device=like.device, dtype=like.dtype, generator=generator)
    tiny = torch.finfo(like.dtype).tiny
    # rand is in [0, 1): the first logarithm needs a floor, the second one too.
    exponential = -torch.log(uniform.clamp_min(tiny))
    return -torch.log(exponential.clamp_min(tiny))
