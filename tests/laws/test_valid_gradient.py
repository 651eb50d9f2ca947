"""``valid``: the network's gradient is that of an image of the valid patches alone."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from amn_masking.estimators import ESTIMATORS
from amn_masking.estimators.score_function import log_plackett_luce
from amn_masking.network import logit_entropy, standardise_logits
from amn_masking.thresholds import Candidates
from benchmarks.enumeration import QuadraticReward, plackett_luce_gradient
from tests.helpers.draws import generator
from tests.helpers.selections import learn

BATCH = 4
LENGTH = 36  # of which 24 are valid


def rows_of(values, valid):
    """The valid entries of each row."""
    return torch.stack([row[keep] for row, keep in zip(values, valid, strict=True)])


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_gradient_is_that_of_an_image_of_the_valid_patches_alone(name, free):
    """Mask, tau, log-probability and objective: 24 patches of 36 are an image of 24."""
    estimator = ESTIMATORS[name]()
    valid = torch.rand(BATCH, LENGTH, generator=generator(0)).argsort(1).argsort(1) < 24
    logits = torch.randn(BATCH, LENGTH, generator=generator(2), dtype=torch.float64)
    noise = torch.randn(BATCH, LENGTH, generator=generator(3), dtype=torch.float64)
    error = torch.rand(BATCH, LENGTH, generator=generator(4), dtype=torch.float64)

    def result(z, noise, error, grid, valid=None):
        z = z.clone().requires_grad_()
        standardised = standardise_logits(z, 1.0, valid)
        priorities = (standardised + noise).detach()
        candidates = Candidates(priorities, grid, standardised.sigmoid(), valid=valid)
        selection = (
            candidates.select_above(1.1 * candidates.mean_score(), (0.0, 1.0))
            if free
            else candidates.select(10)
        )
        surrogate, chances = estimator.relax(standardised, priorities, selection)
        objective = learn(
            selection.patch_mask, standardised, surrogate, estimator.objective, chances=chances
        ).learned.objective(error)
        entropy = logit_entropy(standardised, valid)
        return (
            selection.patch_mask.mask,
            *torch.autograd.grad(objective, z, retain_graph=True),
            *torch.autograd.grad(entropy.sum(), z),
        ), (selection.tau.detach(), entropy.detach())

    whole, of_image = result(logits, noise, error, (6, 6), valid)
    alone, of_alone = result(*(rows_of(x, valid) for x in (logits, noise, error)), (4, 6))
    for one, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(rows_of(one, valid), other)
        assert not one[~valid].any()
    for one, other in zip(of_image, of_alone, strict=True):
        torch.testing.assert_close(one, other)
    assert whole[1].abs().max() > 0


def test_probabilities_of_all_orders_of_valid_patches_sum_to_one():
    logits = torch.randn(1, 6, dtype=torch.float64)
    valid = torch.tensor([[True, False, True, True, False, True]])
    total = 0.0
    for order in permutations((0, 2, 3, 5), 2):
        priorities = torch.zeros(1, 6, dtype=torch.float64)
        priorities[0, [1, 4]] = 9.0  # what has no data would come first
        priorities[0, order[0]], priorities[0, order[1]] = 2.0, 1.0
        selection = Candidates(priorities, (2, 3), valid=valid).select(2)
        assert set(selection.patch_mask.ids_mask[0].tolist()) == set(order)
        total += log_plackett_luce(logits, priorities, selection).exp().item()
    assert total == pytest.approx(1.0)


def test_with_patches_without_data_score_function_stays_unbiased():
    """Its mean over many draws beside the exact gradient, by enumeration of the valid masks."""
    reward, draws = QuadraticReward(6, 0), 40_000
    valid = torch.zeros(9, dtype=torch.bool)
    places = torch.tensor([1, 2, 4, 5, 7, 8])
    valid[places] = True
    logits = torch.full((draws, 9), 3.0, dtype=torch.float64)
    logits[:, places] = reward.logits
    logits.requires_grad_()
    estimator = ESTIMATORS["score_function"]()
    priorities = estimator.priorities(logits, False, generator(0))
    selection = Candidates(priorities, (3, 3), valid=valid.expand(draws, -1)).select(3)
    surrogate = estimator.surrogate(logits, priorities, selection)
    learned = learn(selection.patch_mask, logits, surrogate, estimator.objective).learned
    error = torch.zeros(draws, 9, dtype=torch.float64)
    error[:, places] = reward.errors(selection.patch_mask.mask[:, places])
    (samples,) = torch.autograd.grad(learned.objective(error), logits)
    samples = samples * draws
    exact = plackett_luce_gradient(reward, 3)
    bound = 4 * samples[:, places].std(0) / draws**0.5
    assert ((samples[:, places].mean(0) - exact).abs() < bound).all()
    assert exact.abs().max() > 5 * bound.max()
    assert not samples[:, ~valid].any()
