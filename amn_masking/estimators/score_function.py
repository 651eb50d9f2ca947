"""``score_function``: the mask as a sample, its log-probability as the gradient. Unbiased."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.estimators.base import Estimator
from amn_masking.learned import LearnedMask
from amn_masking.network import NEVER
from amn_masking.patches import image_means
from amn_masking.thresholds.base import Selection

# Images of a batch from which a baseline with two coefficients is fitted.
FEWEST_TO_FIT = 8


class ScoreFunction(Estimator):
    """surrogate = m * (1 + log pi(m) - sg(log pi(m))), with a leave-one-out baseline.

    REINFORCE: Williams, "Simple Statistical Gradient-Following Algorithms" (1992). pi is the
    distribution that the mask was drawn from: Plackett-Luce for a fixed count, log pi the
    log-probability of the patches in the order of their priorities (Kool et al., arXiv:1903.06059);
    independent Bernoulli(sigmoid(z - tau)) for a free count.

    The baseline is what the *other* images of the batch say that this one's error will be, so that
    the estimate of the gradient of the expected masked error is unbiased; a baseline that holds the
    image's own error is not (Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!",
    2019). Most of what an image's error varies by is how difficult the image is, and much of that
    can be read off its pixels: the baseline is the straight line from the variance within the
    image's patches to its mean masked error, fitted to the others. In batches of fewer than 8
    images it is the others' mean; with one image it is 0.

    All of it is taken out where the batch holds each image several times, under masks of their own:
    the baseline is then the mean error of the image's other copies.

    Unbiased as long as no image's free count meets ``ratio_range``, which is no part of pi. The
    threshold ``mean`` with ``standardise=False`` is refused: the mean error of the masked patches
    also changes with how many are masked, and all scores could drift to 0.

    Args:
        masks_per_image: m >= 1; with m > 1 each image stands m times in a row in the batch,
            ``images.repeat_interleave(m, 0)``.

    Raises:
        ValueError: m is no positive integer; in the loss, a batch that it does not divide.

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(mask_ratio=0.5, estimator=dict(type="score_function"))
        >>> type(masking.estimator).__name__
        'ScoreFunction'
    """

    fewest_masked = 1
    compares_images = True

    def __init__(self, masks_per_image: int = 1) -> None:
        super().__init__(noise=1.0)
        if not isinstance(masks_per_image, int) or masks_per_image < 1:
            raise ValueError(f"masks_per_image counts masks, at least 1, got {masks_per_image!r}")
        self.masks_per_image = masks_per_image

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        mask = selection.patch_mask.mask
        if selection.free_counts:
            log_pi = log_bernoulli(logits, selection)[:, None]
        else:
            log_pi = log_plackett_luce(logits, priorities, selection)[:, None]
        return mask + mask * (log_pi - log_pi.detach())

    def baseline(self, reward: Tensor, learned: LearnedMask) -> Tensor:
        """``(B, 1)`` the image's mean reward as the other images of the batch, or its own other
        copies, predict it.
        """
        rewards, m = image_means(reward, learned.chosen.mask), self.masks_per_image
        if m > 1:
            if len(rewards) % m:
                raise ValueError(
                    f"masks_per_image={m} expected a batch of {m} copies of each image, "
                    f"images.repeat_interleave({m}, 0), got {len(rewards)} images; set "
                    "drop_last=True where the last batch is smaller"
                )
            return others_mean(rewards.reshape(-1, m).T).T.reshape(-1, 1)
        if learned.variance is None or len(rewards) < FEWEST_TO_FIT:
            return others_mean(rewards)
        return others_line(learned.variance.to(rewards), rewards)


def others_mean(values: Tensor) -> Tensor:
    """``(B, N)`` mean of the other rows' ``values``, ``(B, N)``; 0 where there is no other."""
    return (values.sum(0, keepdim=True) - values) / max(len(values) - 1, 1)


def others_line(x: Tensor, y: Tensor) -> Tensor:
    """``(B, 1)`` y of each row by the least-squares line through the *other* rows' x and y.

    Args:
        x: ``(B, 1)``; a row further than three of their standard deviations from the others' mean
            is taken to be that far.
        y: ``(B, 1)``.
    """
    x = x / x.mean().clamp_min(torch.finfo(x.dtype).tiny)
    mean_x, mean_y = others_mean(x), others_mean(y)
    variance = (others_mean(x.square()) - mean_x.square()).clamp_min(0)
    covariance = others_mean(x * y) - mean_x * mean_y
    reach = 3 * variance.sqrt()
    # The variance of x, whose mean is 1, is told from rounding; equal x have no line.
    slope = covariance / (variance + 1e-6)
    return mean_y + slope * (x - mean_x).clamp(-reach, reach)


def log_plackett_luce(logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
    """``(B,)`` log-probability of drawing the masked patches in the order of their priorities.

    sum over the draws of z - logsumexp(z of what is left). Patches that ``random_share`` masked
    were drawn before, uniformly: they are neither draws nor left.

    Args:
        logits: ``(B, L)``.
        priorities: ``(B, L)`` what the threshold saw.
        selection: a fixed count.
    """
    patch_mask = selection.patch_mask
    # What was left at the end, then the draws from the last to the first, then what came before.
    rank = priorities.masked_fill(patch_mask.mask == 0, float("-inf"))
    if selection.drawn_at_random is not None:
        rank = rank.masked_fill(selection.drawn_at_random, float("inf"))
    ids = rank.argsort(1)
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
