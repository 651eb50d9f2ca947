"""What all thresholds share: which patches are chosen, at random too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking.thresholds import Candidates, Mean, Quantile, Tracking
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.selections import choose, masks_of


@given(draws.quantile_cases())
def test_permuting_the_images_permutes_the_masks(case):
    """No image's mask depends on another's scores, or on its place; without ties."""
    grid, ratio, logits, _ = case
    order = torch.randperm(4)
    logits = torch.stack([torch.randperm(logits.shape[1]).float() for _ in range(4)])
    logits = torch.logit((logits + 0.5) / logits.shape[1])
    for threshold, wanted in ((Quantile(), ratio), (Mean(), None), (Tracking().eval(), 0.5)):
        straight, permuted, alone = (
            masks_of(threshold, logits[rows], grid, wanted) for rows in (slice(4), order, [0])
        )
        assert torch.equal(permuted, straight[order])
        assert torch.equal(alone, straight[:1])


def test_random_share_draws_that_many_at_random_and_keeps_the_count():
    keys = torch.arange(16.0).expand(2000, 16)
    selection = choose(
        Quantile(), keys, keys, (4, 4), 0.5, random_share=0.25, generator=generator(0)
    )
    mask, drawn_at_random = selection.patch_mask.mask, selection.drawn_at_random
    assert (mask.sum(1) == 8).all()
    assert (drawn_at_random.sum(1) == 2).all()
    assert mask.bool()[drawn_at_random].all()
    # Every patch is drawn equally often: probability 2 / 16.
    frequency = drawn_at_random.float().mean(0)
    assert (frequency - 0.125).abs().max() < 4 * math.sqrt(0.125 * 0.875 / 2000)
    # The rest are the best that are left.
    for row in range(50):
        best = keys[row].masked_fill(drawn_at_random[row], -1).topk(6).indices
        assert mask[row][best].all()


@pytest.mark.parametrize(("masked", "share"), [(2, 0.25), (3, 0.5), (7, 0.3), (9, 0.05)])
def test_the_random_share_is_exact_on_average_and_never_more_than_a_patch_off(masked, share):
    """Rounding to the nearest would draw nothing of 2 patches at 0.25, ever."""
    keys = torch.arange(12.0).expand(20_000, 12)
    candidates = Candidates(keys, (3, 4), random_share=share, generator=generator(0))
    counts = candidates.select(masked).drawn_at_random.sum(1).double()
    exact = masked * share
    assert set(counts.unique().tolist()) == {math.floor(exact), math.floor(exact) + 1}
    chance = exact - math.floor(exact)
    bound = 4 * math.sqrt(chance * (1 - chance) / 20_000)
    assert counts.mean().item() == pytest.approx(exact, abs=bound)


@pytest.mark.parametrize(("masked", "share", "drawn"), [(8, 0.25, 2), (8, 1.0, 8), (10, 0.3, 3)])
def test_a_whole_number_of_random_patches_is_drawn_every_time(masked, share, drawn):
    keys = torch.arange(12.0).expand(2000, 12)
    candidates = Candidates(keys, (3, 4), random_share=share, generator=generator(0))
    assert (candidates.select(masked).drawn_at_random.sum(1) == drawn).all()


@pytest.mark.parametrize("make", [lambda: Mean(), lambda: Tracking(), lambda: Tracking().eval()])
def test_free_counts_honour_the_generator_where_scores_are_equal(make):
    """With the count at a bound, equal scores are drawn; the same seed draws the same."""
    logits = torch.zeros(4, 16)
    drawn = [
        masks_of(make(), logits, (4, 4), 0.5, random_share=0.5, generator=generator(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_no_patch_is_drawn_at_random_unless_asked():
    scores = torch.rand(2, 9)
    for threshold in (Quantile(), Mean(), Tracking()):
        chosen = choose(threshold, torch.logit(scores), scores, (3, 3), 0.5)
        assert chosen.drawn_at_random is None


@given(draws.grids, st.floats(0.05, 1.0), draws.seeds)
def test_the_random_share_of_free_counts_is_of_each_image_s_own_count(grid, share, seed):
    logits = torch.logit(torch.rand(3, math.prod(grid), generator=generator(seed)), eps=0.01)
    selection = choose(
        Mean(), logits, logits.sigmoid(), grid, random_share=share, generator=generator(seed)
    )
    masked = selection.patch_mask.mask.sum(1)
    assert torch.equal(masked, masks_of(Mean(), logits, grid).sum(1))
    drawn = selection.drawn_at_random.sum(1)
    assert ((drawn - masked * share).abs() < 1 - 1e-6).all()
    assert selection.patch_mask.mask.bool()[selection.drawn_at_random].all()


def test_the_random_share_honours_the_generator():
    keys = torch.arange(64.0).expand(2, 64)
    one, same, other = (
        choose(
            Quantile(), keys, keys, (8, 8), 0.5, random_share=0.5, generator=generator(seed)
        ).drawn_at_random
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@given(draws.quantile_cases(), st.data())
def test_free_counts_too_never_unmask_a_patch_whose_score_is_raised(case, data):
    """Ties, constant and extreme scores, three precisions; the mean moves with the score."""
    grid, _, logits, seed = case
    logits = logits.float().clamp(-10, 10)
    row = data.draw(st.integers(0, logits.shape[0] - 1))
    patch = data.draw(st.integers(0, logits.shape[1] - 1))
    raised = logits.clone()
    raised[row, patch] += data.draw(st.sampled_from([0.01, 1.0, 100.0]))
    for threshold in (Mean(), Mean(0.7), Tracking().eval()):
        before, after = (
            masks_of(threshold, z, grid, 0.5, generator=generator(seed)) for z in (logits, raised)
        )
        assert after[row, patch] >= before[row, patch]


@given(draws.quantile_cases())
def test_free_counts_keep_to_the_range_whatever_the_scores(case):
    grid, _, logits, seed = case
    length = logits.shape[1]
    least, most = max(1, math.ceil(0.05 * length - 1e-9)), math.floor(0.95 * length + 1e-9)
    for threshold in (Mean(), Tracking()):
        logits = logits.float()
        selection = choose(
            threshold, logits, logits.sigmoid(), grid, 0.5, generator=generator(seed)
        )
        counts = selection.patch_mask.mask.sum(1)
        assert ((counts >= least) & (counts <= min(most, length - 1))).all()
        assert torch.isfinite(selection.tau).all()


@given(draws.quantile_cases())
def test_permuting_the_patches_permutes_free_masks(case):
    grid, _, logits, seed = case
    logits = torch.logit(torch.rand(logits.shape, dtype=torch.float64) * 0.98 + 0.01)
    order = torch.randperm(logits.shape[1])
    for threshold in (Mean(), Tracking().eval()):
        straight, permuted = (
            masks_of(threshold, z, grid, 0.5, generator=generator(seed))
            for z in (logits, logits[:, order])
        )
        assert torch.equal(permuted, straight[:, order])


@pytest.mark.parametrize("threshold", [Quantile(), Mean(), Tracking()])
def test_a_single_patch_cannot_be_masked_and_visible(threshold):
    with pytest.raises(
        ValueError, match=r"leaves none visible|no number of masked patches out of 1"
    ):
        masks_of(threshold, torch.zeros(2, 1), (1, 1), 0.5)


@pytest.mark.parametrize("threshold", [Mean(), Tracking()])
def test_a_threshold_of_scores_asks_for_them(threshold):
    with pytest.raises(ValueError, match="expected scores, which this strategy does not make"):
        threshold(Candidates(torch.zeros(2, 4), (2, 2), mask_ratio=0.5))
