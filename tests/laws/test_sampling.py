"""What is drawn, and how often. Seeds are fixed; bounds are at 99.9 % unless stated."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from amn_masking import RandomMasking
from amn_masking.estimators import Gumbel, ScoreFunction, StraightThrough
from amn_masking.noise import gumbel
from amn_masking.thresholds import Mean, Quantile
from benchmarks.enumeration import fixed_masks
from tests.helpers.selections import choose, masks_of

DRAWS = 40_000


def drawn_masks(logits, seed=0):
    """``(DRAWS, L)`` masks of half of the patches, drawn by the score function's noise."""
    generator = torch.Generator().manual_seed(seed)
    logits = logits.expand(DRAWS, -1)
    priorities = ScoreFunction().priorities(logits, False, generator)
    grid = (1, logits.shape[1])
    return masks_of(Quantile(), priorities, grid, 0.5, generator=generator)


def frequencies(masks, every):
    """How often each row of ``every`` occurs among ``masks``."""
    powers = 2.0 ** torch.arange(masks.shape[1])
    codes = {int(code): i for i, code in enumerate(every.float() @ powers)}
    counts = torch.zeros(len(every))
    for code, count in zip(*(masks @ powers).unique(return_counts=True), strict=True):
        counts[codes[int(code)]] = count
    return counts.numpy()


def plackett_luce(logits, every, masked):
    """Probability of each mask: all orders of its patches, draw by draw."""
    weights = logits.double().exp()
    probabilities = []
    for mask in every:
        total = 0.0
        for order in permutations(mask.nonzero().flatten().tolist()):
            left, probability = weights.sum(), 1.0
            for patch in order:
                probability = probability * weights[patch] / left
                left = left - weights[patch]
            total += float(probability)
        probabilities.append(total)
    assert sum(probabilities) == pytest.approx(1)
    return np.array(probabilities)


def test_masks_at_constant_scores_are_uniform_over_all_70():
    every = fixed_masks(8, 4)
    counts = frequencies(drawn_masks(torch.zeros(8)), every)
    assert stats.chisquare(counts).pvalue > 0.001


def test_ties_without_noise_are_uniform_over_all_70():
    logits = torch.zeros(DRAWS, 8)
    generator = torch.Generator().manual_seed(0)
    masks = masks_of(Quantile(), logits, (2, 4), 0.5, generator=generator)
    assert stats.chisquare(frequencies(masks, fixed_masks(8, 4))).pvalue > 0.001


def test_random_masking_is_uniform_over_all_70():
    generator = torch.Generator().manual_seed(0)
    masks = RandomMasking(0.5, 1)(torch.zeros(DRAWS, 1, 2, 4), generator).mask
    assert stats.chisquare(frequencies(masks, fixed_masks(8, 4))).pvalue > 0.001


def test_masks_follow_plackett_luce():
    logits, every = torch.linspace(-1, 1.5, 6), fixed_masks(6, 3)
    expected = DRAWS * plackett_luce(logits, every, 3)
    counts = frequencies(drawn_masks(logits), every)
    assert stats.chisquare(counts, expected).pvalue > 0.001


def test_that_test_can_fail():
    logits, every = torch.linspace(-1, 1.5, 6), fixed_masks(6, 3)
    expected = DRAWS * plackett_luce(logits, every, 3)
    counts = frequencies(drawn_masks(1.05 * logits), every)
    assert stats.chisquare(counts, expected).pvalue < 0.001


def test_a_patch_is_masked_as_often_as_plackett_luce_includes_it():
    logits, every = torch.linspace(-2, 2, 6), fixed_masks(6, 3)
    inclusion = torch.tensor(plackett_luce(logits, every, 3) @ every.numpy())
    frequency = drawn_masks(logits).double().mean(0)
    bound = 4 * (inclusion * (1 - inclusion) / DRAWS).sqrt()
    assert ((frequency - inclusion).abs() < bound).all()


@pytest.mark.parametrize("estimator", [ScoreFunction(), Gumbel(), StraightThrough()])
def test_free_counts_mask_each_patch_on_its_own_with_sigmoid_z_minus_tau(estimator):
    logits = torch.linspace(-1, 2, 12)
    generator = torch.Generator().manual_seed(0)
    rows = logits.expand(DRAWS, -1)
    priorities = estimator.priorities(rows, True, generator)
    selection = choose(
        Mean(ratio_range=(0, 1)), priorities, rows.sigmoid(), (3, 4), generator=generator
    )
    tau = torch.logit(logits.sigmoid().mean())
    expected = (logits - tau).sigmoid()
    masks = selection.patch_mask.mask
    bound = 4 * (expected * (1 - expected) / DRAWS).sqrt() + 1e-3  # 1e-3: all or none is cut
    assert ((masks.mean(0) - expected).abs() < bound).all()
    # Independent: no pair is correlated.
    correlation = torch.corrcoef(masks.T) - torch.eye(12)
    assert correlation.abs().max() < 5 / DRAWS**0.5


def test_noise_is_gumbel():
    noise = gumbel(torch.zeros(200, 200), torch.Generator().manual_seed(0))
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 0.001


def test_noise_is_finite_for_every_draw(monkeypatch):
    for value in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda *a, value=value, **k: torch.full((1, 2), value))
        assert torch.isfinite(gumbel(torch.zeros(1, 2))).all()
