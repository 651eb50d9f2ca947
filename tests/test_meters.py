"""The meters, beside slow and obvious references and at their extremes."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.meters import (
    PositionMeter,
    adversarial_gain,
    mask_distance,
    mask_statistics,
    score_entropy,
)
from tests.helpers import draws


def random_masks(grid, ratio, batch):
    return RandomMasking(ratio, 4)(torch.zeros(batch, 3, grid[0] * 4, grid[1] * 4))


def counted(patch_mask):
    return patch_mask.mask, patch_mask.grid


def coin(p):
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


# --- score_entropy


@given(grid=draws.grids, batch=draws.batches, seed=draws.seeds, scale=st.floats(0.01, 30))
def test_score_entropy_is_that_of_each_image_s_draw(grid, batch, seed, scale):
    length = math.prod(grid)
    logits = scale * torch.randn(batch, length, generator=torch.Generator().manual_seed(seed))
    expected = 0.0
    for row in logits.double().tolist():
        weights = [math.exp(z - max(row)) for z in row]
        shares = [w / sum(weights) for w in weights]
        expected += -sum(p * math.log(p) for p in shares if p > 0) / math.log(length) / batch
    assert score_entropy(logits).item() == pytest.approx(expected, abs=1e-5)
    shifted = score_entropy(logits + torch.randn(batch, 1)).item()
    assert shifted == pytest.approx(expected, abs=1e-4)


def test_score_entropy_at_its_ends():
    assert score_entropy(torch.full((3, 64), -7.0)).item() == pytest.approx(1, abs=1e-6)
    one = torch.zeros(3, 64)
    one[:, 5] = 1000
    assert score_entropy(one) == 0
    half = torch.zeros(1, 64)
    half[:, :8] = 1000  # 8 equal ones of 64: log 8 / log 64
    assert score_entropy(half).item() == pytest.approx(0.5, abs=1e-5)


# --- mask_distance


@given(case=draws.masks(free_counts=True))
def test_mask_distance_is_the_mean_over_pairs(case):
    mask, _ = case
    if mask.shape[0] < 2:
        return
    distance, random = [], []
    for one, other in combinations(mask.tolist(), 2):
        distance.append(sum(a != b for a, b in zip(one, other, strict=True)) / len(one))
        p, q = sum(one) / len(one), sum(other) / len(other)
        random.append(p * (1 - q) + q * (1 - p))
    assert mask_distance(mask).item() == pytest.approx(sum(distance) / sum(random), abs=1e-5)


def test_mask_distance_at_its_ends():
    one = random_masks((4, 4), 0.25, 1).mask
    assert mask_distance(one.repeat(5, 1)) == 0
    # Two complementary halves: 1, where 2 * 1/2 * 1/2 was expected.
    half = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    assert mask_distance(half) == 2
    with pytest.raises(ValueError, match="at least two images, got 1"):
        mask_distance(one)


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.75])
def test_mask_distance_of_random_masks_is_one(ratio):
    """0.999 to 1.001 over 64 seeds; a batch of ImageNet size neither overflows nor rounds."""
    mask = random_masks((14, 14), ratio, 4096).mask
    assert mask_distance(mask).item() == pytest.approx(1, abs=2e-3)


# --- PositionMeter


@given(window=st.integers(1, 5), steps=st.integers(1, 12), case=draws.masks(True), seed=draws.seeds)
def test_position_entropy_is_that_of_the_weighted_history(window, steps, case, seed):
    mask, grid = case
    generator = torch.Generator().manual_seed(seed)
    meter, history = PositionMeter(window), []
    for _ in range(steps):
        order = torch.randperm(mask.shape[1], generator=generator)
        batch = PatchMask.from_mask(mask[:, order], grid)
        meter.update(*counted(batch))
        history.append(batch.mask.mean(0).tolist())
    # The weight of each batch, written out.
    weights = []
    for step in range(1, steps + 1):
        newest = 1 / min(step, window)
        weights = [w * (1 - newest) for w in weights] + [newest]
    assert sum(weights) == pytest.approx(1)
    share = [
        sum(w * row[position] for w, row in zip(weights, history, strict=True))
        for position in range(mask.shape[1])
    ]
    ratio = sum(share) / len(share)
    expected = sum(coin(min(p, 1.0)) for p in share) / len(share) / coin(ratio)
    assert meter.entropy().item() == pytest.approx(expected, abs=1e-4)
    assert meter.filled == (steps >= window)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.75, 0.95])
def test_position_entropy_is_0_for_frozen_masks_of_any_ratio(ratio):
    frozen = PatchMask.from_mask(random_masks((7, 9), ratio, 1).mask.repeat(4, 1), (7, 9))
    meter = PositionMeter(10)
    for _ in range(30):
        meter.update(*counted(frozen))
    assert meter.entropy() == 0


def test_position_entropy_is_1_where_every_position_is_masked_equally_often():
    meter = PositionMeter(10)
    for first in range(10):
        mask = torch.zeros(1, 10)
        mask[0, [first, (first + 1) % 10, (first + 2) % 10]] = 1
        meter.update(*counted(PatchMask.from_mask(mask, (2, 5))))
    assert meter.entropy().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.6, 0.9])
@pytest.mark.parametrize("side", [5, 14])
def test_random_masks_stay_far_above_the_warning_s_bound(ratio, side):
    """One image a step, the smallest batch: as the docs say, and the formula behind it."""
    meter = PositionMeter()
    for _ in range(100):
        meter.update(*counted(random_masks((side, side), ratio, 1)))
    assert meter.filled
    exact = 1 - int(side**2 * (1 - ratio)) / side**2
    assert meter.entropy().item() == pytest.approx(1 - 1 / (200 * coin(exact)), abs=0.01)
    assert meter.entropy() > 0.96


def test_frozen_masks_are_noticed_after_healthy_ones():
    """How fast: below the warning's bound after 4 windows."""
    meter, frozen = PositionMeter(20), random_masks((8, 8), 0.25, 1)
    for _ in range(40):
        meter.update(*counted(random_masks((8, 8), 0.25, 8)))
    assert meter.entropy() > 0.99
    for _ in range(80):
        meter.update(*counted(frozen))
    assert meter.entropy() < 0.15


def test_grids_may_change_and_each_keeps_its_own_count():
    alone, mixed = PositionMeter(5), PositionMeter(5)
    for step in range(12):
        patch_mask = random_masks((3, 5), 0.5, 4)
        alone.update(*counted(patch_mask))
        mixed.update(*counted(random_masks((4, 4) if step % 2 else (15, 1), 0.5, 2)))
        mixed.update(*counted(patch_mask))
    assert torch.equal(mixed.entropy(), alone.entropy())
    mixed.update(*counted(random_masks((9, 2), 0.5, 2)))
    assert not mixed.filled


def test_the_state_goes_through_a_checkpoint(tmp_path):
    meter, other = PositionMeter(5), PositionMeter(5)
    for _ in range(3):
        meter.update(*counted(random_masks((3, 5), 0.5, 4)))
    torch.save(meter.state_dict(), tmp_path / "state.pth")
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    for patch_mask in (random_masks((3, 5), 0.5, 4), random_masks((2, 2), 0.5, 4)):
        meter.update(*counted(patch_mask))
        other.update(*counted(patch_mask))
        assert torch.equal(meter.entropy(), other.entropy())
    assert other.batches == meter.batches


def test_nothing_counted_and_no_window_are_refused():
    with pytest.raises(ValueError, match=r"at least one update\(mask, grid\)"):
        PositionMeter().entropy()
    with pytest.raises(ValueError, match="window counts batches, at least 1, got 0"):
        PositionMeter(0)


# --- adversarial_gain


@given(case=draws.masks(free_counts=True), seed=draws.seeds)
def test_adversarial_gain_is_masked_error_over_masked_error_at_random_positions(case, seed):
    mask, grid = case
    patch_mask, length = PatchMask.from_mask(mask, grid), mask.shape[1]
    difficulty = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) + 0.1

    def patch_error(masks):
        assert not torch.is_grad_enabled()
        # Harder where more is masked, as with a real autoencoder; visible patches do not count.
        error = difficulty * (1 + masks.mask.sum(1, keepdim=True))
        return torch.where(masks.mask.bool(), error, 1e6)

    gain = adversarial_gain(patch_error, patch_mask, torch.Generator().manual_seed(seed))
    noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)).tolist()
    learned, random, count = 0.0, 0.0, 0
    for row, hidden in enumerate(mask.tolist()):
        masked = int(sum(hidden))
        count += masked
        hardest_noise = sorted(range(length), key=lambda patch: noise[row][patch])[-masked:]
        for patch in range(length):
            error = difficulty[row, patch].item() * (1 + masked)
            learned += error * hidden[patch]
            random += error * (patch in hardest_noise)
    if all(len(set(row)) == length for row in noise):  # equal noise leaves the order open
        assert gain.item() == pytest.approx((learned / count) / (random / count), rel=1e-4)


def test_adversarial_gain_at_its_ends():
    difficulty = torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 9]]).repeat(4000, 1)
    hard = PatchMask.from_mask((difficulty == 9).float(), (2, 4))
    easy = PatchMask.from_mask((torch.arange(8) == 0).float().repeat(4000, 1), (2, 4))
    # One of eight at random: an error of 2 on average, with deviation 0.04 over 4000 images.
    assert adversarial_gain(lambda m: difficulty, hard).item() == pytest.approx(4.5, rel=0.1)
    assert adversarial_gain(lambda m: difficulty, easy).item() == pytest.approx(0.5, rel=0.1)
    assert adversarial_gain(lambda m: torch.ones(4000, 8), hard) == 1


def test_adversarial_gain_compares_what_is_predicted_under_as_few_seen():
    masking = RandomMasking(0.75, 4, prediction_ratio=0.25)
    patch_mask = masking(torch.randn(2000, 3, 16, 16))
    seen = []

    def patch_error(masks):
        seen.append((masks.num_visible, masks.num_predicted))
        return torch.where(masks.predicted > 0, 1.0, float("nan"))

    assert adversarial_gain(patch_error, patch_mask) == 1
    assert seen == [(4, 4), (4, 4)]
    assert mask_statistics(patch_mask)["prediction_ratio"] == 0.25
    assert "prediction_ratio" not in mask_statistics(
        RandomMasking(0.75, 4)(torch.randn(2, 3, 8, 8))
    )


# --- patches without data


def test_patches_without_data_are_in_no_statistic():
    masking, valid = AdversarialMasking(0.25, 4), torch.rand(3, 36) > 0.4
    patch_mask = masking(torch.randn(3, 3, 24, 24), valid=valid)
    rows = [row[ok] for row, ok in zip(patch_mask.learned.patch_scores, valid, strict=True)]
    spread = sum(row.std(correction=0) for row in rows) / 3
    torch.testing.assert_close(mask_statistics(patch_mask)["score_spread"], spread)
    logits = torch.randn(3, 36)
    entropies = [score_entropy(z[ok][None]) for z, ok in zip(logits, valid, strict=True)]
    torch.testing.assert_close(score_entropy(logits, valid), sum(entropies) / 3)
