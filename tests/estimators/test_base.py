"""Surrogates and objectives: their values, and their gradients against the written formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking
from amn_masking.estimators import (
    ESTIMATORS,
    Gumbel,
    Inclusion,
    Ranking,
    ScoreFunction,
    StraightThrough,
)
from amn_masking.noise import gumbel
from tests.helpers import draws
from tests.helpers.precision import network_dtypes
from tests.helpers.selections import selected

each_estimator = pytest.mark.parametrize("name", ESTIMATORS)


@each_estimator
@pytest.mark.parametrize("free", [False, True])
@given(seed=draws.seeds)
def test_the_surrogate_equals_the_mask_bit_for_bit_and_the_objective_is_zero(name, free, seed):
    estimator = ESTIMATORS[name]()
    _, priorities, _, patch_mask = selected(estimator, free, seed=seed)
    surrogate = patch_mask.learned.surrogate
    assert torch.equal(surrogate, patch_mask.mask.to(surrogate.dtype))
    assert not priorities.requires_grad
    error = torch.rand(3, 6, dtype=torch.float64)
    assert patch_mask.learned.objective(error).item() == 0


@each_estimator
@given(
    case=draws.lengths_and_ratios(),
    seed=draws.seeds,
    dtype=network_dtypes,
    free=st.booleans(),
)
def test_through_the_strategy_in_every_precision(name, case, seed, dtype, free):
    """Images and weights in each of them: the mask is made in float32."""
    grid, ratio = case
    torch.manual_seed(seed)
    masking = AdversarialMasking(
        mask_ratio=None if free else ratio,
        patch_size=(2,) * len(grid),
        estimator=dict(type=name),
        threshold=dict(type="mean") if free else dict(type="quantile"),
        network=dict(channels=2),
        random_share=0.0,
    )
    length = math.prod(grid)
    enough = length > 2 if free else length - draws.visible_reference(length, ratio) > 1
    masking = masking.to(dtype).train(enough)
    images = torch.randn(2, 3, *(2 * parts for parts in grid), dtype=dtype)
    patch_mask = masking(images)
    assert patch_mask.learned.surrogate.dtype == torch.float32
    assert torch.equal(patch_mask.learned.surrogate, patch_mask.mask)
    assert patch_mask.ids_restore.dtype == torch.int64
    masked = patch_mask.mask.sum(1)
    assert ((masked >= 1) & (masked < patch_mask.num_patches)).all()


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("estimator", [StraightThrough(), Gumbel(), Inclusion(), Ranking()])
@given(seed=draws.seeds)
def test_gradients_sum_to_0_over_each_image_s_valid_patches(estimator, free, seed):
    """Else all logits of an image move together, until the scores are all 0 or all 1."""
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[1, 2] = False
    logits, _, _, patch_mask = selected(estimator, free, seed=seed, valid=valid)
    weight = torch.rand(3, 6, dtype=torch.float64)
    objective = patch_mask.learned.objective(weight)
    grads = [torch.autograd.grad(objective, logits, retain_graph=True)[0]]
    if estimator.differentiable:
        grads += torch.autograd.grad((patch_mask.learned.surrogate * weight).sum(), logits)
    for grad in grads:
        assert grad.sum(1).abs().max() < 1e-9
        assert grad[1, 2] == 0


@pytest.mark.parametrize("estimator", [StraightThrough(), Gumbel(), ScoreFunction()])
def test_the_objective_is_the_advantage_times_the_surrogate(estimator):
    logits, _, _, patch_mask = selected(estimator)
    error, mask = torch.rand(3, 6, dtype=torch.float64), patch_mask.mask
    (got,) = torch.autograd.grad(patch_mask.learned.objective(error), logits, retain_graph=True)
    rewards = (error * mask).sum(1) / mask.sum(1)
    total = 0.0
    for row in range(3):
        if isinstance(estimator, ScoreFunction):
            baseline = sum(rewards[other] for other in range(3) if other != row) / 2
        else:
            baseline = rewards[row]
        for patch in range(6):
            if mask[row, patch]:
                advantage = error[row, patch] - baseline
                total = (
                    total
                    + advantage * patch_mask.learned.surrogate[row, patch] / mask[row].sum() / 3
                )
    (expected,) = torch.autograd.grad(total, logits)
    assert torch.allclose(got, expected)


@pytest.mark.parametrize("estimator", [StraightThrough(), Gumbel(), ScoreFunction(), Ranking()])
def test_each_image_counts_alike_whatever_its_number_of_masked_patches(estimator):
    """With free counts: the slow mean over the images, each over its own K, made one by one."""
    logits, _, _, patch_mask = selected(estimator, free=True, batch=5, length=12)
    counts = patch_mask.mask.sum(1)
    assert len(counts.unique()) > 2
    error = torch.rand(5, 12, dtype=torch.float64)
    objective = patch_mask.learned.objective(error)
    (got,) = torch.autograd.grad(objective, logits, retain_graph=True)
    expected = torch.zeros_like(logits)
    means = [error[i][patch_mask.mask[i] > 0].mean() for i in range(5)]
    surrogate = patch_mask.learned.surrogate
    for row in range(5):
        chosen = patch_mask.mask[row].nonzero().flatten().tolist()
        value = 0.0
        if isinstance(estimator, Ranking):
            pairs = [(i, j) for i in chosen for j in chosen if error[row, i] > error[row, j]]
            for i, j in pairs:
                value = value + (logits[row, i] - logits[row, j]).sigmoid().log() / len(pairs)
        else:
            own = isinstance(estimator, ScoreFunction)
            others = [means[i] for i in range(5) if i != row]
            baseline = sum(others) / 4 if own else means[row]
            for patch in chosen:
                advantage = error[row, patch] - baseline
                value = value + advantage * surrogate[row, patch] / len(chosen)
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        expected += gradient / 5
    torch.testing.assert_close(got, expected)
    assert got.abs().max() > 0


@pytest.mark.parametrize("free", [False, True])
def test_without_noise_the_priorities_are_the_logits(free):
    logits = torch.randn(2, 5, requires_grad=True)
    for estimator in (StraightThrough(noise=0.0), Ranking(noise=0.0)):
        assert torch.equal(estimator.priorities(logits, free, None), logits.detach())


def test_noise_scales():
    logits, seeds = torch.zeros(1, 1000), (torch.Generator().manual_seed(0) for _ in range(2))
    one, two = (
        StraightThrough(noise=scale).priorities(logits, False, generator)
        for scale, generator in zip((1.0, 2.0), seeds, strict=True)
    )
    assert torch.allclose(two, 2 * one)
    assert StraightThrough().temperature == Gumbel().temperature == StraightThrough().noise == 1.0
    assert Gumbel().noise == ScoreFunction().noise == Ranking().noise == 1.0


def test_errors_carry_no_gradient_into_the_objective():
    for estimator in (StraightThrough(), ScoreFunction(), Ranking(), Inclusion()):
        _, _, _, patch_mask = selected(estimator)
        error = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
        patch_mask.learned.objective(error).backward()
        assert error.grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StraightThrough(noise=-1), "cannot be negative, got -1"),
        (lambda: Ranking(noise=float("nan")), "cannot be negative"),
        (lambda: Inclusion(floor=0), r"floor is a probability in \(0, 1\), got 0"),
        (lambda: Gumbel(temperature=0), "must be a positive number, got 0; what may move is"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_noise_has_the_logits_dtype():
    for dtype in (torch.float32, torch.float64):
        assert gumbel(torch.zeros(1, 2, dtype=dtype)).dtype == dtype


def test_half_precision_errors_are_not_rounded_further():
    _, _, _, patch_mask = selected(StraightThrough())
    error = torch.rand(3, 6).bfloat16()
    learned = patch_mask.learned
    assert learned.objective(error).dtype == learned.surrogate.dtype
