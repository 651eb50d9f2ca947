"""Laws of the exact count: how many patches, and which."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking.thresholds import Quantile
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.selections import choose, masks_of


@given(draws.quantile_cases())
def test_quantile_masks_exactly_the_reference_count(case):
    grid, ratio, keys, seed = case
    mask = masks_of(Quantile(), keys, grid, ratio, generator=generator(seed))
    length = keys.shape[1]
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.dtype == torch.float32
    assert (mask.sum(1) == length - int(length * (1 - ratio))).all()


@given(draws.quantile_cases())
def test_quantile_threshold_separates_masked_from_visible(case):
    grid, ratio, keys, seed = case
    selection = choose(Quantile(), keys, keys.sigmoid(), grid, ratio, generator=generator(seed))
    mask = selection.patch_mask.mask.bool()
    assert (keys >= selection.tau)[mask].all()
    assert (keys <= selection.tau)[~mask].all()
    untied = torch.tensor([len(set(row.tolist())) == len(row) for row in keys])
    assert torch.equal((keys > selection.tau)[untied], mask[untied])


@given(draws.quantile_cases(), st.data())
def test_raising_one_score_never_unmasks_that_patch(case, data):
    grid, ratio, keys, seed = case
    row = data.draw(st.integers(0, keys.shape[0] - 1))
    patch = data.draw(st.integers(0, keys.shape[1] - 1))
    raised = keys.clone()
    raised[row, patch] = raised[row, patch] + data.draw(st.sampled_from([0.01, 1.0, 100.0]))
    before, after = (
        masks_of(Quantile(), k, grid, ratio, generator=generator(seed)) for k in (keys, raised)
    )
    assert after[row, patch] >= before[row, patch]
    others = torch.arange(keys.shape[0]) != row
    assert torch.equal(after[others], before[others])


@given(draws.quantile_cases())
def test_permuting_the_patches_permutes_the_mask(case):
    grid, ratio, keys, seed = case
    keys = torch.stack([torch.randperm(keys.shape[1]).float() for _ in keys])  # no ties
    order = torch.randperm(keys.shape[1])
    straight, permuted = (
        masks_of(Quantile(), k, grid, ratio, generator=generator(seed))
        for k in (keys, keys[:, order])
    )
    assert torch.equal(permuted, straight[:, order])


@given(draws.quantile_cases())
def test_same_seed_same_mask(case):
    grid, ratio, keys, seed = case
    first, second = (
        choose(Quantile(), keys, keys.sigmoid(), grid, ratio, generator=generator(seed)).patch_mask
        for _ in range(2)
    )
    assert torch.equal(first.ids_shuffle, second.ids_shuffle)


def test_ties_break_at_random_and_evenly():
    """Each of 8 equal patches is masked half of the time: 99.9 % binomial bounds for n = 4000."""
    keys = torch.zeros(4000, 8)
    mask = masks_of(Quantile(), keys, (2, 4), 0.5, generator=generator(0))
    frequency = mask.mean(0)
    bound = 3.9 * math.sqrt(0.25 / 4000)  # 8 patches: 3.9 sigma each
    assert (frequency - 0.5).abs().max() < bound
