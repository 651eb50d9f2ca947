"""What every estimator has: noise on the logits, a surrogate mask, an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from amn_masking.mask import PatchMask
from amn_masking.thresholds.selection import Selection


class Estimator(ABC):
    """How the masking network's logits get a gradient through a hard mask.

    Args:
        noise: scale >= 0 of the exploration noise on the logits; 0 is deterministic.

    Raises:
        ValueError: a negative scale.
    """

    # Whether the surrogate has a gradient at every patch, visible ones included.
    differentiable = False

    def __init__(self, noise: float = 1.0) -> None:
        if not noise >= 0:
            raise ValueError(f"noise is a scale and cannot be negative, got {noise}")
        self.noise = noise

    def keys(self, logits: Tensor, free_counts: bool, generator: torch.Generator | None) -> Tensor:
        """``(B, L)`` keys for the threshold: the logits with exploration noise, no gradient.

        At scale 1 the noise makes the threshold draw from a known distribution. For a fixed count
        it is Gumbel noise, whose top K are K draws without replacement with probabilities
        proportional to exp(logit): Plackett-Luce (Kool et al., arXiv:1903.06059). For a free
        count it is logistic noise, which masks each patch with probability sigmoid(logit - tau).

        Args:
            logits: ``(B, L)``.
            free_counts: whether the threshold leaves the count free.
            generator: source of the noise.
        """
        logits = logits.detach()
        if self.noise == 0:
            return logits
        noise = gumbel_noise(logits, generator)
        if free_counts:
            # The difference of two Gumbel variables is logistic.
            noise = noise - gumbel_noise(logits, generator)
        return logits + self.noise * noise

    @abstractmethod
    def surrogate(self, logits: Tensor, keys: Tensor, selection: Selection) -> Tensor:
        """``(B, L)`` equal to the mask bit for bit, with the estimator's gradient to the logits.

        Args:
            logits: ``(B, L)`` with a gradient.
            keys: ``(B, L)`` what the threshold saw.
            selection: what the threshold chose.
        """

    def objective(self, error: Tensor, patch_mask: PatchMask) -> Tensor:
        """sum(m * (sg(l) - b) * (surrogate - m)) / K over each image's patches, batch mean.

        A scalar of value 0. Visible patches count for nothing: a masked autoencoder's prediction
        there is untrained. b is :meth:`baseline`, K the image's number of masked patches; where
        b is the mean over them, one masked patch alone gives no gradient.

        Args:
            error: ``(B, L)`` per-patch error l.
            patch_mask: the mask that the error was made under.
        """
        mask = patch_mask.mask
        error = error.detach().to(patch_mask.surrogate.dtype)
        advantage = mask * (error - self.baseline(error, mask))
        # The surrogate minus its own value: 0 for every patch, whatever the mask.
        change = patch_mask.surrogate - patch_mask.surrogate.detach()
        return ((advantage * change).sum(1) / mask.sum(1)).mean()

    def baseline(self, error: Tensor, mask: Tensor) -> Tensor:
        """``(B, 1)`` b: the mean error of the image's own masked patches."""
        return masked_mean(error, mask)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """``(B, 1)`` mean of ``(B, L)`` errors over each image's masked patches."""
    return (error * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


def straight_through(mask: Tensor, soft: Tensor) -> Tensor:
    """``mask`` in value, bit for bit, with the gradient of ``soft``."""
    return mask + (soft - soft.detach())


def gumbel_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise of the shape of ``like``, finite for every draw."""
    uniform = torch.rand(like.shape, device=like.device, dtype=like.dtype, generator=generator)
    tiny = torch.finfo(like.dtype).tiny
    # rand is in [0, 1): both logarithms need a floor.
    return -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))
