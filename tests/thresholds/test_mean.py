"""Laws of the threshold at the mean of an image's scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from amn_masking.thresholds import Mean, Quantile
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.selections import choose


@given(draws.grids, st.floats(0.3, 3.0), st.tuples(st.floats(0, 1), st.floats(0, 1)), draws.seeds)
def test_mean_masks_what_is_above_scale_times_mean_within_the_range(grid, scale, bounds, seed):
    length = math.prod(grid)
    low, high = sorted(bounds)
    least = max(1, math.ceil(low * length - 1e-9))
    most = min(length - 1, math.floor(high * length + 1e-9))
    assume(least <= most)
    scores = torch.rand(3, length, generator=generator(seed), dtype=torch.float64) * 0.98 + 0.01
    keys = torch.logit(scores)
    selection = choose(Mean(scale, (low, high)), keys, scores, grid, generator=generator(seed))
    mask = selection.patch_mask.mask
    for row in range(3):
        above = scores[row] > scale * scores[row].mean()
        wanted = int(above.sum())
        count = int(mask[row].sum())
        assert count == min(max(wanted, least), most)
        assert selection.patch_mask.grid == grid
        if wanted == count and scale * scores[row].mean() < 1 - 1e-6:
            assert torch.equal(mask[row].bool(), above)


@given(draws.grids, st.floats(0.1, 1.0), draws.seeds)
def test_mean_masks_do_not_change_when_all_scores_are_scaled(grid, factor, seed):
    """score > scale * mean(scores): both sides scale alike."""
    scores = torch.rand(2, math.prod(grid), generator=generator(seed), dtype=torch.float64)
    scores = scores * 0.98 + 0.01
    one, other = (
        choose(Mean(), torch.logit(s), s, grid, generator=generator(seed)).patch_mask.mask
        for s in (scores, scores * factor)
    )
    assert torch.equal(one, other)


def test_an_empty_ratio_range_is_refused():
    with pytest.raises(ValueError, match="no number of masked patches out of 4"):
        choose(Mean(ratio_range=(0.3, 0.4)), torch.zeros(1, 4), torch.zeros(1, 4), (2, 2))


def test_scale_must_be_positive():
    with pytest.raises(ValueError, match="scale"):
        Mean(scale=0)


def test_equal_scores_are_not_above_their_mean():
    """score > tau, strictly: the count goes to its lower bound, not to its upper one."""
    scores = torch.full((2, 16), 0.5)
    threshold = Mean(ratio_range=(0.25, 0.75))
    masks = choose(threshold, torch.logit(scores), scores, (4, 4)).patch_mask.mask
    assert (masks.sum(1) == 4).all()


@given(draws.grids, st.floats(0.5, 1.5), draws.seeds)
def test_tau_of_a_free_count_is_the_policy_s_or_where_the_bound_cut(grid, scale, seed):
    scores = torch.rand(4, math.prod(grid), generator=generator(seed)) * 0.98 + 0.01
    assume(math.prod(grid) > 4)
    selection = choose(Mean(scale, (0.3, 0.6)), torch.logit(scores), scores, grid)
    assert selection.free_counts
    assert not choose(Quantile(), scores, scores, grid, 0.5).free_counts
    mask, tau = selection.patch_mask.mask.bool(), scale * scores.mean(1)
    for row in range(4):
        wanted, count = int((scores[row] > tau[row]).sum()), int(mask[row].sum())
        got = selection.tau[row].sigmoid()
        if wanted == count:
            assert torch.allclose(got, tau[row].clamp(1e-6, 1 - 1e-6), atol=1e-6)
        else:
            assert torch.allclose(got, scores[row][~mask[row]].max(), atol=1e-6)
