"""Laws of the thresholds: how many patches, and which."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking.thresholds import Mean, Quantile, Tracking
from amn_masking.thresholds.selection import count_range, count_visible
from tests.helpers import draws
from tests.helpers.draws import generator


def test_ratio_075_of_14_by_14_keeps_49():
    assert count_visible(196, 0.75) == 49


def test_the_count_is_not_the_other_formula():
    """L - int(L * r) differs from int(L * (1 - r)) in many cases; ours is the latter."""
    differ = [
        (length, ratio)
        for length in range(2, 401)
        for ratio in (0.1, 0.3, 0.6, 0.7, 0.8, 0.9)
        if int(length * (1 - ratio)) > 0
        and length - int(length * ratio) != int(length * (1 - ratio))
    ]
    assert len(differ) > 100
    for length, ratio in differ:
        assert count_visible(length, ratio) == int(length * (1 - ratio))


@given(draws.quantile_cases())
def test_permuting_the_images_permutes_the_masks(case):
    """No image's mask depends on another's scores, or on its place; without ties."""
    grid, ratio, keys, _ = case
    keys = torch.stack([torch.randperm(keys.shape[1]).float() for _ in range(4)])
    scores = (keys + 0.5) / keys.shape[1]
    order = torch.randperm(4)
    for threshold in (Quantile(ratio), Mean(), Tracking(0.5).eval()):
        logits = torch.logit(scores)
        straight = threshold(logits, scores, grid).patch_mask.mask
        permuted = threshold(logits[order], scores[order], grid).patch_mask.mask
        alone = threshold(logits[:1], scores[:1], grid).patch_mask.mask
        assert torch.equal(permuted, straight[order])
        assert torch.equal(alone, straight[:1])


def test_random_share_draws_that_many_at_random_and_keeps_the_count():
    keys = torch.arange(16.0).expand(2000, 16)
    selection = Quantile(0.5)(keys, keys, (4, 4), random_share=0.25, generator=generator(0))
    mask = selection.patch_mask.mask
    assert (mask.sum(1) == 8).all()
    assert (selection.random.sum(1) == 2).all()
    assert mask.bool()[selection.random].all()
    # Every patch is drawn equally often: probability 2 / 16.
    frequency = selection.random.float().mean(0)
    assert (frequency - 0.125).abs().max() < 4 * math.sqrt(0.125 * 0.875 / 2000)
    # The rest are the best that are left.
    for row in range(50):
        drawn = selection.random[row]
        best = keys[row].masked_fill(drawn, -1).topk(6).indices
        assert mask[row][best].all()


@pytest.mark.parametrize(
    "make", [lambda: Mean(), lambda: Tracking(0.5), lambda: Tracking(0.5).eval()]
)
def test_free_counts_honour_the_generator_where_scores_are_equal(make):
    """With the count at a bound, equal scores are drawn; the same seed draws the same."""
    scores = torch.full((4, 16), 0.5)
    drawn = [
        make()(torch.logit(scores), scores, (4, 4), 0.5, generator(seed)).patch_mask
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0].mask, drawn[1].mask)
    assert not torch.equal(drawn[0].mask, drawn[2].mask)
    assert drawn[0].grid == (4, 4)


def test_no_patch_is_drawn_at_random_unless_asked():
    scores = torch.rand(2, 9)
    for threshold in (Quantile(0.5), Mean(), Tracking(0.5)):
        assert threshold(torch.logit(scores), scores, (3, 3)).random is None


@given(draws.grids, st.floats(0.05, 1.0), draws.seeds)
def test_the_random_share_of_free_counts_is_of_each_image_s_own_count(grid, share, seed):
    scores = torch.rand(3, grid[0] * grid[1], generator=generator(seed)) * 0.98 + 0.01
    selection = Mean()(torch.logit(scores), scores, grid, share, generator(seed))
    masked = selection.patch_mask.mask.sum(1)
    plain = Mean()(torch.logit(scores), scores, grid, 0.0, generator(seed)).patch_mask.mask
    assert torch.equal(masked, plain.sum(1))
    assert torch.equal(selection.random.sum(1), (masked * share).round().long())
    assert selection.patch_mask.mask.bool()[selection.random].all()


def test_counts_reach_both_ends_of_the_range():
    assert count_range(10, (0.0, 1.0)) == (1, 9)
    assert count_range(10, (0.2, 0.7)) == (2, 7)
    assert count_range(3, (0.1, 0.9)) == (1, 2)
    assert count_range(30, (0.1, 0.9)) == (3, 27)  # 0.1 * 30 rounds to just above 3


def test_the_random_share_honours_the_generator():
    keys = torch.arange(64.0).expand(2, 64)
    one, same, other = (
        Quantile(0.5)(keys, keys, (8, 8), 0.5, generator(seed)).random for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@given(draws.quantile_cases(), st.data())
def test_free_counts_too_never_unmask_a_patch_whose_score_is_raised(case, data):
    """Ties, constant and extreme scores, three precisions; the mean moves with the score."""
    grid, _, keys, seed = case
    keys = keys.float().clamp(-10, 10)
    row = data.draw(st.integers(0, keys.shape[0] - 1))
    patch = data.draw(st.integers(0, keys.shape[1] - 1))
    raised = keys.clone()
    raised[row, patch] += data.draw(st.sampled_from([0.01, 1.0, 100.0]))
    for threshold in (Mean(), Mean(0.7), Tracking(0.5).eval()):
        before, after = (
            threshold(k, k.sigmoid(), grid, generator=generator(seed)).patch_mask.mask
            for k in (keys, raised)
        )
        assert after[row, patch] >= before[row, patch]


@given(draws.quantile_cases())
def test_free_counts_keep_to_the_range_whatever_the_scores(case):
    grid, _, keys, seed = case
    length = keys.shape[1]
    least, most = max(1, math.ceil(0.05 * length - 1e-9)), math.floor(0.95 * length + 1e-9)
    for threshold in (Mean(), Tracking(0.5)):
        logits = keys.float()
        selection = threshold(logits, logits.sigmoid(), grid, generator=generator(seed))
        counts = selection.patch_mask.mask.sum(1)
        assert ((counts >= least) & (counts <= min(most, length - 1))).all()
        assert torch.isfinite(selection.tau).all()


@given(draws.quantile_cases())
def test_permuting_the_patches_permutes_free_masks(case):
    grid, _, keys, seed = case
    scores = torch.rand(keys.shape, dtype=torch.float64) * 0.98 + 0.01
    order = torch.randperm(keys.shape[1])
    for threshold in (Mean(), Tracking(0.5).eval()):
        straight, permuted = (
            threshold(torch.logit(s), s, grid, generator=generator(seed)).patch_mask.mask
            for s in (scores, scores[:, order])
        )
        assert torch.equal(permuted, straight[:, order])


@pytest.mark.parametrize("threshold", [Quantile(0.5), Mean(), Tracking(0.5)])
def test_a_single_patch_cannot_be_masked_and_visible(threshold):
    with pytest.raises(
        ValueError, match=r"leaves none visible|no number of masked patches out of 1"
    ):
        threshold(torch.zeros(2, 1), torch.full((2, 1), 0.5), (1, 1))
