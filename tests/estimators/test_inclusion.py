"""Inclusion probabilities: against enumeration, and what they must obey."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from amn_masking import AdversarialMasking
from amn_masking.estimators import Inclusion, ScoreFunction, StraightThrough
from amn_masking.estimators.inclusion import inclusion_probabilities
from amn_masking.mask import PatchMask
from amn_masking.thresholds import Candidates, Mean, Quantile
from amn_masking.thresholds.base import Selection
from benchmarks.enumeration import QuadraticReward, plackett_luce_gradient, sampled_gradients
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.selections import selected


def selection_of(batch, length, masked, drawn=0, valid=None, tau=None):
    """A choice of the first patches, of which the first ``drawn`` are random ones."""
    hidden = (torch.arange(length) < masked).expand(batch, -1)
    patch_mask = PatchMask.in_order(hidden, length - masked, (1, length), valid=valid)
    at_random = (torch.arange(length) < drawn).expand(batch, -1) if drawn else None
    free = tau is not None
    return Selection(patch_mask, torch.zeros(batch, 1) if tau is None else tau, at_random, free)


def exact(logits, masked):
    """``(L,)`` chance of each patch to be among ``masked`` draws without replacement."""
    weights, found = logits.exp().tolist(), [0.0] * len(logits)
    for order in permutations(range(len(logits)), masked):
        chance, left = 1.0, sum(weights)
        for patch in order:
            chance *= weights[patch] / left
            left -= weights[patch]
        for patch in order:
            found[patch] += chance
    return torch.tensor(found, dtype=torch.float64)


@given(st.integers(2, 80), st.floats(0.0, 14.0), st.data())
def test_they_sum_to_the_count_and_their_gradients_to_0(length, spread, data):
    """Also for logits at both ends of what scores reach, in float32."""
    masked = data.draw(st.integers(1, length - 1))
    drawn = data.draw(st.integers(0, masked))
    seed = data.draw(draws.seeds)
    logits = spread * (2 * torch.rand(3, length, generator=generator(seed)) - 1)
    logits = logits.requires_grad_()
    tau = torch.zeros(3, 1) if data.draw(st.booleans()) and drawn else None
    mu = inclusion_probabilities(logits, selection_of(3, length, masked, drawn, tau=tau))
    assert ((mu >= 0) & (mu <= 1)).all()
    assert torch.allclose(mu.sum(1), torch.tensor(float(masked)), rtol=1e-3)
    (gradient,) = torch.autograd.grad((mu * torch.randn(3, length)).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert gradient.sum(1).abs().max() < 1e-4 * (1 + gradient.abs().sum())


@pytest.mark.parametrize(
    ("length", "masked", "tolerance"), [(8, 4, 0.05), (8, 1, 0.05), (7, 6, 0.06)]
)
def test_they_are_near_those_of_all_orders_enumerated(length, masked, tolerance):
    for seed in range(5):
        logits = torch.randn(1, length, generator=generator(seed), dtype=torch.float64)
        mu = inclusion_probabilities(logits, selection_of(1, length, masked))
        assert (mu[0] - exact(logits[0], masked)).abs().max() < tolerance


def test_they_are_nearer_for_more_patches():
    """49 of 196, against 20,000 draws."""
    logits = torch.randn(1, 196, generator=generator(0))
    priorities = Inclusion().priorities(logits.expand(20_000, -1), False, generator(1))
    masks = Quantile()(Candidates(priorities, (14, 14), mask_ratio=0.25)).patch_mask.mask
    mu = inclusion_probabilities(logits, selection_of(1, 196, 49))
    # Four standard errors of 20,000 draws are 0.014 at the most.
    assert (masks.mean(0) - mu[0]).abs().max() < 0.016


def test_equal_logits_have_equal_chances():
    mu = inclusion_probabilities(torch.full((2, 10), 3.0), selection_of(2, 10, 3))
    assert torch.allclose(mu, torch.tensor(0.3))


def test_free_counts_are_bernoulli_s():
    logits, tau = torch.randn(3, 9), torch.randn(3, 1)
    mu = inclusion_probabilities(logits, selection_of(3, 9, 4, tau=tau))
    assert torch.allclose(mu, torch.sigmoid(logits - tau))


@pytest.mark.parametrize("free", [False, True])
def test_patches_drawn_at_random_are_in_the_probability(free):
    """Against how often each is masked: 40 patches, 16 of them masked, 6 of these at random."""
    logits = torch.randn(1, 40, generator=generator(0)).expand(20_000, -1)
    estimator, threshold = Inclusion(), Mean() if free else Quantile()
    priorities = estimator.priorities(logits, free, generator(1))
    ratio = None if free else 0.4
    selection = threshold(
        Candidates(priorities, (5, 8), logits.sigmoid(), ratio, 0.375, generator=generator(2))
    )
    mu = inclusion_probabilities(logits, selection).mean(0)
    assert (selection.patch_mask.mask.mean(0) - mu).abs().max() < 0.03


@given(draws.seeds, st.booleans())
def test_a_larger_logit_never_has_a_smaller_chance(seed, drawn):
    logits = 1.5 * torch.randn(1, 12, generator=generator(seed), dtype=torch.float64)
    selection = selection_of(1, 12, 5, 2 * drawn)
    mu = inclusion_probabilities(logits, selection)
    order = logits[0].argsort()
    assert (mu[0][order].diff() >= 0).all()
    raised = logits.clone()
    raised[0, 3] += 0.5
    more = inclusion_probabilities(raised, selection)
    assert more[0, 3] > mu[0, 3] or mu[0, 3] > 1 - 1e-6
    others = torch.arange(12) != 3
    assert (more[0, others] <= mu[0, others] + 1e-9).all()


@given(draws.seeds)
def test_permuting_the_patches_permutes_them(seed):
    logits = torch.randn(2, 12, generator=generator(seed), dtype=torch.float64)
    order = torch.randperm(12, generator=generator(seed))
    selection = selection_of(2, 12, 5)
    straight = inclusion_probabilities(logits, selection)
    assert torch.allclose(inclusion_probabilities(logits[:, order], selection), straight[:, order])


def test_patches_that_are_not_valid_have_no_chance_and_no_say():
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[:, 5:] = False
    logits = torch.randn(2, 8, dtype=torch.float64).requires_grad_()
    mu = inclusion_probabilities(logits, selection_of(2, 8, 2, valid=valid))
    alone = inclusion_probabilities(logits[:, :5], selection_of(2, 5, 2))
    assert torch.allclose(mu[:, :5], alone)
    assert not mu[:, 5:].any()
    (gradient,) = torch.autograd.grad(mu[:, 0].sum(), logits)
    assert not gradient[:, 5:].any()


@pytest.mark.parametrize(("free", "drawn"), [(False, 0), (False, 2), (True, 2)])
def test_gradcheck(free, drawn):
    """The gradient is that of mu with its tau, found anew for the logits that are moved."""
    logits = torch.randn(2, 7, generator=generator(0), dtype=torch.float64).requires_grad_()
    tau = torch.zeros(2, 1, dtype=torch.float64) if free else None
    selection = selection_of(2, 7, 3, drawn, tau=tau)
    assert gradcheck(lambda z: inclusion_probabilities(z, selection), logits)


@pytest.mark.parametrize("free", [False, True])
def test_the_objective_is_the_written_formula(free):
    estimator = Inclusion(floor=0.3)
    logits, _, selection, patch_mask = selected(estimator, free)
    error, mask = torch.rand(3, 6, dtype=torch.float64), patch_mask.mask
    mu = inclusion_probabilities(logits, selection)
    weight = mask / mu.detach().clamp_min(0.3)
    assert (mu < 0.3).any()
    assert torch.equal(patch_mask.learned.chances, mu.detach())
    baseline = (weight * error).sum(1) / weight.sum(1)
    expected = 0.0
    for row in range(3):
        for patch in range(6):
            gain = weight[row, patch] * (error[row, patch] - baseline[row])
            expected = expected + gain * mu[row, patch] / mask[row].sum() / 3
    got = patch_mask.learned.objective(error)
    for one, other in zip(
        torch.autograd.grad(got, logits, retain_graph=True),
        torch.autograd.grad(expected, logits),
        strict=True,
    ):
        assert torch.allclose(one, other)


def cosine(estimator, reward, exact_gradient):
    samples = sampled_gradients(estimator, Quantile(), 0.5, reward, 20_000, generator(0))
    return torch.cosine_similarity(samples.mean(0), exact_gradient, dim=0).item()


@pytest.mark.parametrize("seed", range(4))
def test_where_patches_do_not_interact_it_points_where_the_exact_gradient_does(seed):
    """Straight-through hears of a patch in proportion to its chance, and is off by that."""
    reward = QuadraticReward(8, seed, interaction=0.0)
    gradient = plackett_luce_gradient(reward, 4)
    mine = cosine(Inclusion(), reward, gradient)
    assert mine > 0.93
    assert mine > cosine(StraightThrough(), reward, gradient)
    assert cosine(ScoreFunction(), reward, gradient) > 0.99


@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.001])
def test_the_gradient_stays_a_number_where_one_patch_is_far_from_the_others(temperature):
    masking = AdversarialMasking(0.75, 4, dict(channels=4), temperature=temperature)
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, :4, :4] = 5.0
    masking(images).learned.objective(torch.rand(2, 64)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in masking.parameters())
