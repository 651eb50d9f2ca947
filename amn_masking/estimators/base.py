"""What every estimator has: noise on the logits, a surrogate mask, an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from amn_masking.config import settings
from amn_masking.learned import LearnedMask
from amn_masking.noise import gumbel
from amn_masking.patches import image_means
from amn_masking.thresholds.base import Selection


class Estimator(ABC):
    """How the masking network's logits get a gradient through a hard mask.

    One's own is a subclass that gives a surrogate; the objective is then made from it::

        class Identity(Estimator):
            def surrogate(self, logits, priorities, selection):
                return straight_through(selection.patch_mask.mask, logits)

    Its gradient should sum to 0 over an image's patches: one that does not moves all logits of an
    image together, by which the mask hardly changes, until the scores are all 0 or all 1.
    :func:`balanced` takes that part out.

    Args:
        noise: scale >= 0 of the exploration noise on the logits; 0 is deterministic.

    Attributes:
        differentiable: whether the surrogate has a gradient at every patch, visible ones included.
        fewest_masked: masked patches that an image needs for the objective to have a gradient.
        compares_images: whether the objective wants to know the images' ``variance``.

    Raises:
        ValueError: a negative scale.
    """

    differentiable = False
    fewest_masked = 2
    compares_images = False

    def __init__(self, noise: float = 1.0) -> None:
        if not noise >= 0:
            raise ValueError(f"noise is a scale and cannot be negative, got {noise}")
        self.noise = noise

    def priorities(self, logits: Tensor, free_counts: bool, generator: Generator | None) -> Tensor:
        """``(B, L)`` for the threshold: the logits with exploration noise, no gradient.

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
        noise = gumbel(logits, generator)
        if free_counts:
            # The difference of two Gumbel variables is logistic.
            noise = noise - gumbel(logits, generator)
        return logits + self.noise * noise

    @abstractmethod
    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        """``(B, L)`` equal to the mask bit for bit, with the estimator's gradient to the logits.

        Args:
            logits: ``(B, L)`` with a gradient.
            priorities: ``(B, L)`` what the threshold saw.
            selection: what the threshold chose.
        """

    def relax(
        self, logits: Tensor, priorities: Tensor, selection: Selection
    ) -> tuple[Tensor, Tensor | None]:
        """The surrogate, and ``(B, L)`` the chance of each patch to be masked, if it is known."""
        return self.surrogate(logits, priorities, selection), None

    def objective(self, reward: Tensor, learned: LearnedMask) -> Tensor:
        """sum(w * (l - b) * (surrogate - m)) / K over each image's patches, batch mean.

        A scalar of value 0. w is :meth:`weight`, b :meth:`baseline`, K the image's number of masked
        patches; where b is the mean over them, one masked patch alone gives no gradient.

        Args:
            reward: ``(B, L)`` of each patch, l, no gradient, 0 at patches that were not chosen.
            learned: the mask that the reward was earned under.
        """
        advantage = self.weight(learned) * (reward - self.baseline(reward, learned))
        # The surrogate minus its own value: 0 for every patch, whatever the mask.
        change = learned.surrogate - learned.surrogate.detach()
        masked = learned.chosen.mask.sum(1).clamp_min(1)
        return ((advantage * change).sum(1) / masked).mean()

    def weight(self, learned: LearnedMask) -> Tensor:
        """``(B, L)`` w: the mask. A masked autoencoder's prediction of visible patches is not
        trained, so they count for nothing.
        """
        return learned.chosen.mask

    def baseline(self, reward: Tensor, learned: LearnedMask) -> Tensor:
        """``(B, 1)`` b: the mean reward of the image's own masked patches, weighted by w."""
        return image_means(reward, self.weight(learned))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({settings(self)})"


def straight_through(mask: Tensor, soft: Tensor) -> Tensor:
    """``mask`` in value, bit for bit, with the gradient of ``soft``."""
    return mask + (soft - soft.detach())


def balanced(logits: Tensor, weight: Tensor) -> Tensor:
    """``logits`` in value; gradients g become g_i - w_i sum(g) / sum(w), so that they sum to 0.

    With w the slope of a sigmoid at each patch this is the gradient of sigmoid(z - tau) where tau
    moves with the logits so that the sum of the sigmoids stays what it is.

    Args:
        logits: ``(B, L)``.
        weight: ``(B, L)``, >= 0, no gradient; 0 at patches that cannot be chosen.
    """
    share = weight / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    mean = (share * logits).sum(1, keepdim=True)
    return logits - (mean - mean.detach())


def relaxed_mask(logits: Tensor, selection: Selection, temperature: float) -> Tensor:
    """``(B, L)`` sigmoid((z - tau) / T), where tau moves so that the sum stays what it is.

    Args:
        logits: ``(B, L)``, with noise or without.
        selection: what the threshold chose.
        temperature: T > 0.
    """
    soft = torch.sigmoid((logits - selection.tau).detach() / temperature)
    slope = soft * (1 - soft)
    valid = selection.patch_mask.valid
    if valid is not None:
        slope = slope * valid
    moving = torch.sigmoid((balanced(logits, slope) - selection.tau.detach()) / temperature)
    return moving if valid is None else moving.where(valid, soft)
