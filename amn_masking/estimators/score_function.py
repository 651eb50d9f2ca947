"""``score_function``: the mask as a sample, its log-probability as the gradient. Unbiased."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.estimators.base import Estimator
from amn_masking.network import NEVER
from amn_masking.patches import image_means
from amn_masking.thresholds.base import Selection


class ScoreFunction(Estimator):
    """surrogate = m * (1 + log pi(m) - sg(log pi(m))), with a leave-one-out baseline.

    REINFORCE: Williams, "Simple Statistical Gradient-Following Algorithms" (1992). pi is the
    distribution that the mask was drawn from: Plackett-Luce for a fixed count, log pi the
    log-probability of the patches in the order of their priorities (Kool et al., arXiv:1903.06059);
    independent Bernoulli(sigmoid(z - tau)) for a free count. The baseline is the mean error of
    the *other* images of the batch (Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for
    Free!", 2019), so that the estimate of the gradient of the expected masked error is unbiased;
    a baseline that holds the image's own error is not. With one image in the batch it is 0.

    Unbiased as long as no image's free count meets ``ratio_range``, which is no part of pi.
    """

    fewest_masked = 1

    def __init__(self) -> None:
        super().__init__(noise=1.0)

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        mask = selection.patch_mask.mask
        log_prob = log_bernoulli if selection.free_counts else log_plackett_luce
        log_pi = log_prob(logits, selection)[:, None]
        return mask + mask * (log_pi - log_pi.detach())

    def baseline(self, reward: Tensor, mask: Tensor) -> Tensor:
        """``(B, 1)`` mean reward of the other images of the batch."""
        rewards = image_means(reward, mask)
        others = max(rewards.shape[0] - 1, 1)
        return (rewards.sum(0, keepdim=True) - rewards) / others


def log_plackett_luce(logits: Tensor, selection: Selection) -> Tensor:
    """``(B,)`` log-probability of drawing the masked patches in the order of their priorities.

    sum over the draws of z - logsumexp(z of what is left). Patches that ``random_share`` masked
    were drawn before, uniformly: they are neither draws nor left.

    Args:
        logits: ``(B, L)``.
        selection: a fixed count.
    """
    patch_mask = selection.patch_mask
    ids = patch_mask.ids_shuffle  # by ascending priority: the first draw comes last
    if patch_mask.valid is not None:
        logits = logits.masked_fill(~patch_mask.valid, NEVER)
    ascending = logits.gather(1, ids)
    left = torch.logcumsumexp(ascending, dim=1)
    drawn = torch.arange(ids.shape[1], device=ids.device) >= patch_mask.num_visible
    if selection.drawn_at_random is not None:
        drawn = drawn & ~selection.drawn_at_random.gather(1, ids)
    return torch.where(drawn, ascending - left, 0.0).sum(1)


def log_bernoulli(logits: Tensor, selection: Selection) -> Tensor:
    """``(B,)`` log-probability of the mask, each patch on its own with sigmoid(z - tau).

    Args:
        logits: ``(B, L)``.
        selection: free counts, its tau with the gradient of the scores that it was made from.
    """
    odds = logits - selection.tau
    masked = selection.patch_mask.mask.bool()
    log_chance = torch.where(masked, F.logsigmoid(odds), F.logsigmoid(-odds))
    if selection.patch_mask.valid is not None:
        log_chance = log_chance.where(selection.patch_mask.valid, 0.0)
    return log_chance.sum(1)
