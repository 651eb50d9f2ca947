"""The score-function gradient against the exact one, by enumeration of every mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from amn_masking import PatchMask
from amn_masking.estimators import ScoreFunction
from amn_masking.estimators.score_function import log_bernoulli, log_plackett_luce
from amn_masking.patches import image_means
from amn_masking.thresholds import Mean, Quantile
from benchmarks.enumeration import (
    QuadraticReward,
    bernoulli_gradient,
    fixed_masks,
    plackett_luce_gradient,
    sampled_gradients,
)
from tests.conftest import thorough_only
from tests.helpers.selections import choose, learn, selected

BATCH = 2  # where a baseline that holds the image's own reward would do most harm


def hotelling(samples, exact):
    """p-value of "the mean of the samples ``(n, L)`` is ``exact`` ``(L,)``"."""
    count, dim = samples.shape
    difference = samples.mean(0) - exact
    covariance = samples.T.cov()
    # A little is added where nothing varies, so that a constant wrong estimate is not solved away.
    covariance = covariance + 1e-9 * covariance.diagonal().mean() * torch.eye(dim)
    statistic = count * difference @ torch.linalg.solve(covariance, difference)
    assert statistic >= 0
    return stats.f.sf(float(statistic) * (count - dim) / (dim * (count - 1)), dim, count - dim)


def batches(estimator, threshold, ratio, reward, count, seed=0):
    """``(count, L)`` independent estimates, each the mean over a batch of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [
            sampled_gradients(estimator, threshold, ratio, reward, BATCH, generator).mean(0)
            for _ in range(count)
        ]
    )


class OwnReward(ScoreFunction):
    """Biased on purpose: the baseline is the batch mean, the image's own reward included."""

    def baseline(self, reward, learned):
        return image_means(reward, learned.chosen.mask).mean(0, keepdim=True)


def test_all_70_masks_are_enumerated():
    masks = fixed_masks(8, 4)
    assert masks.shape == (70, 8)
    assert len({tuple(mask.tolist()) for mask in masks}) == 70
    assert (masks.sum(1) == 4).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_fixed_counts_are_unbiased(seed):
    reward = QuadraticReward(8, seed)
    samples = batches(ScoreFunction(), Quantile(), 0.5, reward, 5000)
    exact = plackett_luce_gradient(reward, 4)
    # A shift of all logits changes nothing, so gradients sum to 0: one coordinate says no more.
    assert hotelling(samples[:, :-1], exact[:-1]) > 0.001


@thorough_only
def test_that_test_can_fail():
    reward = QuadraticReward(8, 0)
    samples = batches(OwnReward(), Quantile(), 0.5, reward, 5000)
    assert hotelling(samples[:, :-1], plackett_luce_gradient(reward, 4)[:-1]) < 1e-6


def test_free_counts_are_unbiased():
    reward = QuadraticReward(12, 0)
    threshold = Mean(scale=1.0, ratio_range=(0, 1))
    samples = batches(ScoreFunction(), threshold, None, reward, 5000)
    exact = bernoulli_gradient(reward, 1.0)
    assert hotelling(samples, exact) > 0.001


class FrozenThreshold(ScoreFunction):
    """Biased on purpose: leaves out the gradient through tau."""

    def surrogate(self, logits, priorities, selection):
        selection.tau = selection.tau.detach()
        return super().surrogate(logits, priorities, selection)


@thorough_only
@pytest.mark.parametrize("estimator", [OwnReward(), FrozenThreshold()])
def test_that_test_can_fail_too(estimator):
    reward = QuadraticReward(12, 0)
    samples = batches(estimator, Mean(scale=1.0, ratio_range=(0, 1)), None, reward, 5000)
    assert hotelling(samples, bernoulli_gradient(reward, 1.0)) < 1e-6


def test_log_probability_is_plackett_luce_s():
    """Against the product of the draws, written out."""
    logits = torch.randn(3, 6, dtype=torch.float64)
    keys = logits + torch.randn(3, 6, dtype=torch.float64)
    selection = choose(Quantile(), keys, logits.sigmoid(), (2, 3), 0.5)
    got = log_plackett_luce(logits, keys, selection)
    for row in range(3):
        left = list(range(6))
        expected = 1.0
        for patch in keys[row].argsort(descending=True)[:3].tolist():
            weights = logits[row].exp()
            expected = expected * weights[patch] / weights[left].sum()
            left.remove(patch)
        assert torch.allclose(got[row].exp(), expected)


def test_probabilities_of_all_orders_sum_to_one():
    from itertools import permutations

    logits = torch.randn(1, 5, dtype=torch.float64)
    total = 0.0
    for order in permutations(range(5), 2):
        keys = torch.zeros(1, 5, dtype=torch.float64)
        keys[0, order[0]], keys[0, order[1]] = 2.0, 1.0
        selection = choose(Quantile(), keys, keys, (1, 5), 0.4)
        total += log_plackett_luce(logits, keys, selection).exp().item()
    assert total == pytest.approx(1.0)


def test_patches_masked_at_random_are_no_draws():
    """log pi with a random share is that of the other draws, from what the random ones left."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 8, dtype=torch.float64)
    keys = logits + torch.randn(1, 8, dtype=torch.float64, generator=generator)
    selection = choose(Quantile(), keys, keys, (2, 4), 0.5, random_share=0.5, generator=generator)
    drawn = selection.drawn_at_random[0].nonzero().flatten().tolist()
    assert len(drawn) == 2
    left = [patch for patch in range(8) if patch not in drawn]
    expected = 1.0
    for patch in sorted(left, key=lambda patch: -keys[0, patch].item())[:2]:
        expected = expected * logits[0, patch].exp() / logits[0, left].exp().sum()
        left.remove(patch)
    assert torch.allclose(log_plackett_luce(logits, keys, selection).exp(), expected)


def test_one_image_has_no_others_to_compare_with():
    learned = learn(PatchMask.from_mask(torch.tensor([[1.0, 0, 1, 0]]))).learned
    assert not ScoreFunction().baseline(torch.rand(1, 4), learned).any()


def test_log_bernoulli_is_the_product_over_the_patches():
    logits, _, selection, patch_mask = selected(ScoreFunction(), free=True)
    for row in range(3):
        probability = 1.0
        for patch in range(6):
            masked = (logits[row, patch] - selection.tau[row, 0]).sigmoid()
            probability = probability * (masked if patch_mask.mask[row, patch] else 1 - masked)
        assert torch.allclose(log_bernoulli(logits, selection)[row].exp(), probability)


def test_with_a_free_count_the_surrogate_is_bernoulli_s():
    logits, _, selection, patch_mask = selected(ScoreFunction(), free=True)
    (got,) = torch.autograd.grad(patch_mask.learned.surrogate.sum(), logits, retain_graph=True)
    log_pi = log_bernoulli(logits, selection) * patch_mask.mask.sum(1)
    (expected,) = torch.autograd.grad(log_pi.sum(), logits)
    assert torch.allclose(got, expected)


@pytest.mark.parametrize("batch", [2, 3])
def test_the_baseline_is_the_mean_reward_of_the_others(batch):
    error, mask = torch.rand(batch, 4), torch.tensor([[1.0, 0, 1, 0]]).expand(batch, -1)
    learned = learn(PatchMask.from_mask(mask)).learned
    baseline = ScoreFunction().baseline(error, learned)
    rewards = error[:, [0, 2]].mean(1)
    assert baseline.shape == (batch, 1)
    for row in range(batch):
        others = [rewards[other] for other in range(batch) if other != row]
        assert torch.allclose(baseline[row, 0], sum(others) / len(others))


@pytest.mark.parametrize("m", [2, 3])
def test_the_baseline_is_the_mean_reward_of_the_image_s_other_copies(m):
    error, mask = torch.rand(4 * m, 4), torch.tensor([[1.0, 0, 1, 0]]).expand(4 * m, -1)
    learned = learn(PatchMask.from_mask(mask), variance=torch.rand(4 * m, 1)).learned
    baseline = ScoreFunction(masks_per_image=m).baseline(error, learned)
    rewards = error[:, [0, 2]].mean(1)
    for row in range(4 * m):
        copies = range(row // m * m, row // m * m + m)
        others = [rewards[other] for other in copies if other != row]
        assert torch.allclose(baseline[row, 0], sum(others) / len(others))


class TwoImages(QuadraticReward):
    """Two images, two rows of the batch each: every patch of the second is harder by far."""

    def errors(self, masks):
        return super().errors(masks) + torch.tensor([0.0, 0, 30, 30], dtype=torch.float64)[:, None]


def of_two_images(estimator, count=4000):
    """``(count, L)`` estimates, each the mean over a batch of four, and the exact gradient."""
    reward, draw = TwoImages(8, 0), torch.Generator().manual_seed(0)
    samples = [
        sampled_gradients(estimator, Quantile(), 0.5, reward, 4, draw).mean(0) for _ in range(count)
    ]
    return torch.stack(samples), plackett_luce_gradient(QuadraticReward(8, 0), 4)


def test_several_masks_per_image_are_unbiased_and_take_the_difficulty_out():
    """A level of all of an image's errors has no part in the gradient of their expectation."""
    samples, exact = of_two_images(ScoreFunction(masks_per_image=2))
    assert hotelling(samples[:, :-1], exact[:-1]) > 0.001
    plain, _ = of_two_images(ScoreFunction(), 1000)
    assert samples.var(0).sum() < plain.var(0).sum() / 20


class OwnCopies(ScoreFunction):
    """Biased on purpose: the mean of all of the image's copies, its own reward included."""

    def baseline(self, reward, learned):
        rewards = image_means(reward, learned.chosen.mask).reshape(-1, 2)
        return rewards.mean(1).repeat_interleave(2)[:, None]


@thorough_only
def test_that_test_can_fail_as_well():
    samples, exact = of_two_images(OwnCopies())
    assert hotelling(samples[:, :-1], exact[:-1]) < 1e-6


@pytest.mark.parametrize("m", [0, -1, 1.5, None])
def test_a_number_of_masks_that_is_none_is_refused(m):
    with pytest.raises(ValueError, match="masks_per_image counts masks, at least 1, got"):
        ScoreFunction(masks_per_image=m)


def test_a_batch_that_it_does_not_divide_is_refused():
    learned = learn(PatchMask.from_mask(torch.eye(4)[:3])).learned
    message = r"masks_per_image=2 expected a batch of 2 copies .*got 3 images; set drop_last=True"
    with pytest.raises(ValueError, match=message):
        ScoreFunction(2).baseline(torch.rand(3, 4), learned)


@pytest.mark.parametrize("far", [None, 6.0, -1.5])
@pytest.mark.parametrize("batch", [8, 11])
def test_in_larger_batches_it_is_the_line_through_the_others(batch, far):
    """From the variance of the image's pixels to its reward, against numpy's least squares; an
    image far from the others is taken to be three of their deviations from their mean.
    """
    generator = torch.Generator().manual_seed(batch)
    error = torch.rand(batch, 4, generator=generator, dtype=torch.float64)
    variance = torch.rand(batch, 1, generator=generator) + 2
    if far is not None:
        variance[0] = 2 + far
    mask = torch.tensor([[1.0, 0, 1, 0]]).expand(batch, -1)
    learned = learn(PatchMask.from_mask(mask), variance=variance).learned
    baseline = ScoreFunction().baseline(error, learned)
    x, y = variance.flatten().double(), error[:, [0, 2]].mean(1)
    for row in range(batch):
        others = [other for other in range(batch) if other != row]
        slope, level = np.polyfit(x[others], y[others], 1)
        mean, reach = x[others].mean().item(), 3 * x[others].std(correction=0).item()
        at = min(max(x[row].item(), mean - reach), mean + reach)
        assert baseline[row].item() == pytest.approx(level + slope * at, rel=1e-2)


@pytest.mark.parametrize("outlier", [0.0, 1e4])
def test_a_baseline_is_never_of_the_image_s_own_reward(outlier):
    """Also where all images have one variance, or one of them has another by far."""
    mask = torch.tensor([[1.0, 0, 1, 0]]).expand(9, -1)
    variance = torch.ones(9, 1)
    variance[3] += outlier
    learned = learn(PatchMask.from_mask(mask), variance=variance).learned
    error = torch.rand(9, 4, dtype=torch.float64)
    before = ScoreFunction().baseline(error, learned)
    assert (before >= -1).all()
    assert (before <= 2).all()
    for row in range(9):
        changed = error.clone()
        changed[row] += 1.0
        after = ScoreFunction().baseline(changed, learned)
        assert after[row].item() == pytest.approx(before[row].item(), abs=1e-6)
        assert outlier or not torch.allclose(after, before)
