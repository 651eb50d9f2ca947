"""The tracking threshold: it settles, does not ring, follows, and is the same on all ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amn_masking import AdversarialMasking
from amn_masking.thresholds import Tracking
from tests import draws
from tests.conftest import ROOT

BATCH, GRID = 16, (7, 7)
LENGTH = GRID[0] * GRID[1]


def normal(generator, low=0.0, high=1.0):
    noise = torch.randn(BATCH, LENGTH, generator=generator)
    return low + (high - low) * torch.sigmoid(noise)


def skewed(generator):
    return 0.05 + 0.9 * torch.rand(BATCH, LENGTH, generator=generator) ** 6


def two_humps(generator):
    hump = (torch.rand(BATCH, LENGTH, generator=generator) < 0.3).float()
    return 0.2 + 0.6 * hump + 0.02 * torch.rand(BATCH, LENGTH, generator=generator)


def own_level_and_spread(generator):
    level = torch.randn(BATCH, 1, generator=generator)
    spread = 3 * torch.rand(BATCH, 1, generator=generator)
    return torch.sigmoid(level + spread * torch.randn(BATCH, LENGTH, generator=generator))


def narrow(generator):
    return 0.5 + 1e-3 * torch.randn(BATCH, LENGTH, generator=generator)


DISTRIBUTIONS = (normal, skewed, two_humps, own_level_and_spread, narrow)


def run(threshold, draw, generator, steps):
    """Mask ratio and offset of each step, for fresh scores in each."""
    ratios, offsets = [], []
    for _ in range(steps):
        scores = draw(generator)
        selection = threshold(torch.logit(scores), scores, GRID, generator=generator)
        ratios.append(selection.patch_mask.mask.mean().item())
        offsets.append(threshold.offset.item())
    return torch.tensor(ratios), torch.tensor(offsets)


@settings(max_examples=settings().max_examples // 5)
@given(st.sampled_from(DISTRIBUTIONS), st.floats(0.15, 0.9), draws.seeds)
def test_it_settles_within_200_steps_at_the_target(draw, target, seed):
    generator = torch.Generator().manual_seed(seed)
    threshold = Tracking(target)
    run(threshold, draw, generator, 200)
    # Batches of 784 scores differ by up to 0.07 in ratio; the mean is over enough of them.
    ratios, _ = run(threshold, draw, generator, 500)
    assert abs(ratios.mean().item() - target) < 0.01


@settings(max_examples=settings().max_examples // 5)
@given(st.sampled_from(DISTRIBUTIONS), st.floats(0.15, 0.9), draws.seeds)
def test_it_follows_a_jump_of_the_distribution(draw, target, seed):
    generator = torch.Generator().manual_seed(seed)
    threshold = Tracking(target)
    run(threshold, lambda g: normal(g, 0.1, 0.9), generator, 100)
    run(threshold, draw, generator, 200)
    # Batches of 784 scores differ by up to 0.07 in ratio; the mean is over enough of them.
    ratios, _ = run(threshold, draw, generator, 500)
    assert abs(ratios.mean().item() - target) < 0.01


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("target", [0.25, 0.75])
def test_the_step_response_does_not_ring(scale, target):
    """Scores that stay the same but for one jump: the offset goes to its new place, past it by
    no more than a patch's worth of ratio, and does not come back again and again."""
    generator = torch.Generator().manual_seed(0)
    one = 0.5 + scale * (torch.rand(BATCH, LENGTH, generator=generator) - 0.5) * 0.9
    two = 0.5 + scale * (torch.rand(BATCH, LENGTH, generator=generator) ** 4 - 0.5) * 0.9
    threshold = Tracking(target)
    run(threshold, lambda g: one, generator, 200)
    ratios, offsets = run(threshold, lambda g: two, generator, 200)
    error = ratios - target
    assert error[100:].abs().max() < 0.01
    signs = error[error.abs() > 0.005].sign()
    assert (signs[1:] != signs[:-1]).sum() <= 1
    travelled, way = offsets.diff().abs().sum(), (offsets[-1] - offsets[0]).abs()
    assert travelled < 1.1 * way + 0.02 * scale


def test_the_first_step_is_at_the_target_already():
    generator = torch.Generator().manual_seed(0)
    ratios, _ = run(Tracking(0.6), normal, generator, 1)
    assert abs(ratios.item() - 0.6) < 0.02


def test_counts_differ_between_images():
    generator = torch.Generator().manual_seed(0)
    threshold = Tracking(0.6)
    run(threshold, own_level_and_spread, generator, 10)
    scores = own_level_and_spread(generator)
    patch_mask = threshold(torch.logit(scores), scores, GRID).patch_mask
    assert len(patch_mask.mask.sum(1).unique()) > 3
    ratios = patch_mask.mask.mean(1)
    assert (ratios >= 0.05).all()
    assert (ratios <= 0.95).all()


def test_eval_does_not_move_it_and_a_checkpoint_keeps_it():
    generator = torch.Generator().manual_seed(0)
    threshold = Tracking(0.6)
    run(threshold, normal, generator, 20)
    state = threshold.state_dict()
    state = {name: value.clone() for name, value in state.items()}
    assert set(state) == {"offset", "slope"}
    run(threshold.eval(), skewed, generator, 5)
    assert torch.equal(threshold.state_dict()["offset"], state["offset"])
    other = Tracking(0.6)
    other.load_state_dict(state)
    one, two = (
        run(t.train(), normal, torch.Generator().manual_seed(1), 5)[1] for t in (threshold, other)
    )
    assert torch.equal(one, two)


def test_in_eval_tau_is_the_mean_plus_the_offset():
    threshold = Tracking(0.6, ratio_range=(0, 1)).eval()
    threshold.offset.fill_(0.1)
    scores = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    mask = threshold(torch.logit(scores), scores, GRID).patch_mask.mask
    assert torch.equal(mask.bool(), scores > scores.mean(1, keepdim=True) + 0.1)


def test_one_step_written_out():
    """Offset, clamp, error and slope by the formula, from plain lists."""
    generator = torch.Generator().manual_seed(0)
    for offset in (0.05, 3.0, -3.0):
        threshold = Tracking(0.6, gain=0.3)
        threshold.offset.fill_(offset)
        threshold.slope.fill_(0.7)
        scores = torch.rand(3, LENGTH, generator=generator) * 0.98 + 0.01
        selection = threshold(torch.logit(scores), scores, GRID)
        deviations = sorted((scores - scores.mean(1, keepdim=True)).flatten().tolist())
        last = len(deviations) - 1
        margin = (deviations[last] - deviations[0]) / 2
        inside = min(max(offset, deviations[0] - margin), deviations[last] + margin)
        error = selection.patch_mask.mask.mean().item() - 0.6
        assert threshold.offset.item() == pytest.approx(inside + 0.3 * error * 0.7, abs=1e-5)
        band = deviations[round(0.5 * last)] - deviations[round(0.3 * last)]
        assert threshold.slope.item() == pytest.approx(band / 0.2, abs=1e-4)


@pytest.mark.parametrize("target", [0.04, 0.96])
def test_targets_near_the_edge_take_the_slope_from_what_there_is(target):
    threshold = Tracking(target, ratio_range=(0, 1), gain=1.0)
    scores = torch.rand(3, LENGTH) * 0.98 + 0.01
    threshold(torch.logit(scores), scores, GRID)
    deviations = (scores - scores.mean(1, keepdim=True)).flatten().sort().values
    ends = (0.0, 0.14) if target > 0.5 else (0.86, 1.0)
    low, high = (deviations[round(end * (len(deviations) - 1))] for end in ends)
    assert threshold.slope.item() == pytest.approx(((high - low) / 0.14).item(), abs=1e-4)


def test_the_masking_strategy_s_checkpoint_holds_it():
    masking = AdversarialMasking(threshold=dict(type="tracking"), patch_size=4, mask_ratio=0.6)
    for _ in range(3):
        masking(torch.randn(4, 3, 24, 24))
    assert masking.state_dict()["threshold.offset"] != 0


def test_ranks_agree():
    """Two real processes with different scores end every step with the same offset."""
    code = """
        import sys, torch, torch.distributed as dist
        from amn_masking.thresholds import Tracking
        rank = int(sys.argv[1])
        dist.init_process_group("gloo", rank=rank, world_size=2)
        generator = torch.Generator().manual_seed(rank)
        threshold = Tracking(0.6)
        offsets = []
        for _ in range(50):
            scores = torch.rand(8, 49, generator=generator) ** (1 + rank) * 0.9 + 0.05
            threshold(torch.logit(scores), scores, (7, 7), generator=generator)
            offsets.append(threshold.offset.item())
        print(offsets, flush=True)
        dist.destroy_process_group()
    """
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks)
    assert printed[0] == printed[1]
    assert len(set(printed[0].strip("[]\n").split(", "))) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mask_ratio=0.97), "must lie inside ratio_range"),
        (dict(mask_ratio=0.95), "must lie inside ratio_range"),
        (dict(mask_ratio=0.05), "must lie inside ratio_range"),
        (dict(mask_ratio=0.5, ratio_range=(0.5, 0.9)), "must lie inside ratio_range"),
        (dict(mask_ratio=0.5, gain=0), r"share of the gap to close, in \(0, 1\], got 0"),
        (dict(mask_ratio=0.5, gain=1.5), "share of the gap"),
        (dict(mask_ratio=1.0), r"must lie in \(0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Tracking(**options)
