"""``inclusion``: each error over the probability that its patch is masked, which has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amn_masking.estimators.base import Estimator, balanced, straight_through
from amn_masking.learned import LearnedMask
from amn_masking.thresholds.base import Selection

HALVINGS, NEWTON_STEPS = 12, 3  # of the search for tau


class Inclusion(Estimator):
    """surrogate = m + (mu - sg(mu)), mu_i the inclusion probability: that patch i is masked.

    Where errors do not depend on the rest of the mask, an image's expected masked error is
    sum(mu l) / K, and its gradient sum(l dmu) / K. But l_i is seen only where m_i = 1, so an
    average over masks hears of a patch in proportion to mu_i. Dividing by mu_i mends that (Horvitz,
    Thompson, "A Generalization of Sampling Without Replacement from a Finite Universe", 1952)::

        E[ sum(m l dmu / mu) ] / K  =  sum(l dmu) / K

    so the objective is sum(m / mu (l - b) (mu - sg(mu))) / K, with b the mean of the image's masked
    errors under the weights m / mu. What is not seen is how a patch, once masked, makes others
    harder: there ``score_function`` alone is unbiased.

    **A fixed count.** K draws without replacement with probabilities proportional to exp(z),
    Plackett-Luce, are also the first K of L clocks to ring, where clock i rings after an
    exponentially distributed time of rate exp(z_i) (Efraimidis, Spirakis, "Weighted random sampling
    with a reservoir", 2006). By time t clock i has rung with probability 1 - exp(-t exp(z_i)).
    With t, written exp(-tau), such that K clocks are expected to have rung::

        mu_i = 1 - exp(-exp(z_i - tau)),    sum(mu) = K

    That holds still the time at which the K-th clock rings. The sum is exact; each mu_i is off by
    up to 0.05 where 4 of 8 patches are masked, less for more patches (Rosen, "Asymptotic theory for
    order sampling", 1997).

    **A free count.** Each patch is masked by itself, mu_i = sigmoid(z_i - tau).

    In both, tau moves with the logits so that sum(mu) stays what it is.

    **Patches drawn at random**, D of the n valid ones, come first, the others from those that are
    left: mu = r + (1 - r) mu', with r = D / n and (1 - r) sum(mu') = K - D.

    Args:
        floor: in (0, 1), the least probability that an error is divided by.

    Raises:
        ValueError: a floor out of range.

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(mask_ratio=0.5, estimator=dict(type="inclusion"))
        >>> type(masking.estimator).__name__
        'Inclusion'
    """

    differentiable = True

    def __init__(self, floor: float = 0.05) -> None:
        super().__init__(noise=1.0)
        if not 0 < floor < 1:
            raise ValueError(f"floor is a probability in (0, 1), got {floor}")
        self.floor = floor

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        return self.relax(logits, priorities, selection)[0]

    def relax(
        self, logits: Tensor, priorities: Tensor, selection: Selection
    ) -> tuple[Tensor, Tensor | None]:
        chances = inclusion_probabilities(logits, selection)
        return straight_through(selection.patch_mask.mask, chances), chances.detach()

    def weight(self, learned: LearnedMask) -> Tensor:
        """``(B, L)`` m / mu."""
        return learned.chosen.mask / learned.chances.clamp_min(self.floor)  # type: ignore[union-attr]


def inclusion_probabilities(logits: Tensor, selection: Selection) -> Tensor:
    """``(B, L)`` the probability of each patch to be masked, with a gradient to the logits.

    Args:
        logits: ``(B, L)``, z.
        selection: the mask, whose count is taken for the expected one.

    Returns:
        mu in [0, 1], 0 at patches that are not valid, of sum K (for a free count without patches
        drawn at random: about K). An image's gradients sum to 0.
    """
    patch_mask, drawn = selection.patch_mask, selection.drawn_at_random
    valid = torch.ones_like(logits) if patch_mask.valid is None else patch_mask.valid.to(logits)
    number = valid.sum(1, keepdim=True)
    count = patch_mask.mask.sum(1, keepdim=True).to(logits)
    at_random: Tensor | float = 0.0
    if drawn is not None:
        random_count = drawn.sum(1, keepdim=True).to(logits)
        at_random, count = random_count / number, count - random_count
        count = count / (1 - at_random)
    z, tau = logits.detach(), selection.tau.detach()
    curve = LOGISTIC if selection.free_counts else RUNG
    if drawn is not None or not selection.free_counts:
        tau = threshold_of(z, count, valid, curve)
    by_score = curve.chance(balanced(logits, curve.slope(z - tau) * valid) - tau)
    return (at_random + (1 - at_random) * by_score) * valid


class Curve(NamedTuple):
    """A chance that increases from 0 to 1, its derivative and its inverse."""

    chance: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


LOGISTIC = Curve(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), torch.logit)
# That a clock of rate exp(x) has rung by time 1: 1 - exp(-exp(x)). From 20 on it is 1 in any
# precision; further on exp(x) overflows, and the gradient would be 0 times infinity.
RUNG = Curve(
    lambda x: -torch.expm1(-x.clamp(max=20).exp()),
    lambda x: (x - x.exp()).exp(),
    lambda share: torch.log(-torch.log1p(-share)),
)


def threshold_of(z: Tensor, count: Tensor, valid: Tensor, curve: Curve) -> Tensor:
    """``(B, 1)`` tau such that chance(z - tau) sums to ``count``; nothing is read back.

    It lies between where it would be if all logits were the least one, or the largest. This is
    halved until Newton's method is near enough to converge.

    Args:
        z: ``(B, L)`` logits, no gradient.
        count: ``(B, 1)``, at least 0 and less than the number of valid patches.
        valid: ``(B, L)`` of 0 and 1, in the logits' type.
        curve: the chance of a patch as a function of z - tau.
    """
    chance, slope, inverse = curve
    share = (count / valid.sum(1, keepdim=True)).clamp(1e-6, 1 - 1e-6)
    none = valid == 0
    low = z.masked_fill(none, float("inf")).amin(1, keepdim=True) - inverse(share)
    high = z.masked_fill(none, float("-inf")).amax(1, keepdim=True) - inverse(share)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        more = (chance(z - middle) * valid).sum(1, keepdim=True) > count
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    tau = (low + high) / 2
    for _ in range(NEWTON_STEPS):
        excess = (chance(z - tau) * valid).sum(1, keepdim=True) - count
        steepness = (slope(z - tau) * valid).sum(1, keepdim=True)
        tau = (tau + excess / steepness.clamp_min(1e-12)).clamp(low, high)
    return tau
