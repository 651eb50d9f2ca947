"""The difficulty threshold: the running gain settles at the target and stays there."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amn_masking import AdversarialMasking
from amn_masking.thresholds import Difficulty
from tests.conftest import ROOT, groups_end
from tests.helpers import draws
from tests.helpers.selections import choose

GRID = (8, 8)
LENGTH = 64
examples = settings(max_examples=max(settings().max_examples // 10, 1))


def see(threshold, ratio, z, generator=None, random_share=0.25):
    return choose(
        threshold,
        z,
        torch.sigmoid(z),
        GRID,
        ratio,
        random_share=random_share,
        generator=generator,
    )


def run(threshold, ratio, steps, generator, slope=1.0, scale=lambda step: 1.0, batch=64, noise=0.3):
    """Gain of each step's own batch, and the ratio; error = exp(slope * score logit), noisy.

    Args:
        slope: positive where the masks are hard, negative where they are easy.
        scale: of all errors at a step: the autoencoder learns.
    """
    gains, ratios = [], []
    for step in range(steps):
        z = torch.randn(batch, LENGTH, generator=generator)
        selection = see(threshold, ratio, z, generator)
        patch_mask, drawn = selection.patch_mask, selection.drawn_at_random
        jitter = noise * torch.randn(batch, LENGTH, generator=generator)
        now = slope(step) if callable(slope) else slope
        error = scale(step) * torch.exp(now * z + jitter)
        threshold.observe(error, patch_mask, drawn)
        chosen = patch_mask.mask.bool() & ~drawn
        gains.append((error[chosen].mean() / error[drawn].mean()).item())
        ratios.append(patch_mask.mask.mean().item())
    return torch.tensor(gains), torch.tensor(ratios)


@examples
@given(target=st.floats(1.2, 2.0), start=st.floats(0.15, 0.85), seed=draws.seeds)
def test_the_gain_settles_at_the_target(target, start, seed):
    generator = torch.Generator().manual_seed(seed)
    threshold = Difficulty(target)
    gains, ratios = run(threshold, start, 300, generator)
    assert gains[-100:].mean().item() == pytest.approx(target, rel=0.02)
    assert threshold.running_gain.item() == pytest.approx(target, rel=0.05)
    # It has arrived and neither rings nor drifts.
    assert ratios[-100:].max() - ratios[-100:].min() < 0.08


def test_a_fixed_ratio_does_not_hold_it():
    """What the test above would see if nothing moved."""
    generator = torch.Generator().manual_seed(0)
    threshold = Difficulty(1.3, rate=1e-9)
    gains, _ = run(threshold, 0.3, 100, generator)
    assert abs(gains[-50:].mean() - 1.3) > 0.2


def test_it_stays_there_while_the_autoencoder_learns():
    """Errors fall to a hundredth, and the masks become harder at the same time."""
    generator = torch.Generator().manual_seed(0)
    threshold = Difficulty(1.4)
    run(threshold, 0.5, 200, generator, slope=0.6)
    gains, ratios = run(
        threshold,
        0.5,
        600,
        generator,
        slope=lambda step: 0.6 + 0.6 * step / 600,
        scale=lambda step: 0.01 ** (step / 600),
    )
    for part in gains.split(100):
        assert part.mean().item() == pytest.approx(1.4, rel=0.04)
    assert ratios[-1] > ratios[0] + 0.1  # harder masks, so more of them


def test_a_cooperative_mask_is_held_below_one():
    generator = torch.Generator().manual_seed(0)
    threshold = Difficulty(0.8)
    gains, _ = run(threshold, 0.3, 300, generator, slope=-0.4)
    assert gains[-100:].mean().item() == pytest.approx(0.8, rel=0.03)


@pytest.mark.parametrize(("slope", "bound"), [(0.0, 0.1), (6.0, 0.9)])
def test_a_target_that_cannot_be_reached_ends_at_the_range(slope, bound):
    generator = torch.Generator().manual_seed(0)
    threshold = Difficulty(1.01 if slope else 1.5, ratio_range=(0.1, 0.9))
    _, ratios = run(threshold, 0.5, 200, generator, slope=slope, noise=0.0)
    assert ratios[-50:].mean().item() == pytest.approx(bound, abs=0.06)
    assert 0.1 <= threshold.ratio <= 0.9


def test_one_step_written_out():
    """Running errors and ratio by the formula, from plain numbers."""
    generator = torch.Generator().manual_seed(0)
    threshold = Difficulty(1.5, rate=0.2)
    z = torch.randn(3, LENGTH, generator=generator)
    running = None
    ratio, level = 0.5, None
    for _ in range(3):
        selection = see(threshold, 0.5, z, generator)
        level = threshold.level.item()
        patch_mask, drawn = selection.patch_mask, selection.drawn_at_random
        error = torch.rand(3, LENGTH, generator=generator)
        threshold.observe(error, patch_mask, drawn)
        sums = [[0.0, 0], [0.0, 0]]
        for image in range(3):
            for patch in range(LENGTH):
                if patch_mask.mask[image, patch]:
                    part = sums[int(drawn[image, patch])]
                    part[0] += error[image, patch].item()
                    part[1] += 1
        total = sums[0][1] + sums[1][1]
        found = [[value / total for value in part] for part in sums]
        running = found if running is None else [
            [0.8 * old + 0.2 * new for old, new in zip(*parts, strict=True)]
            for parts in zip(running, found, strict=True)
        ]  # fmt: skip
        gain = (running[0][0] / running[0][1]) / (running[1][0] / running[1][1])
        step = 0.15 * 0.2 * (math.log(gain) - math.log(1.5))
        ratio += step
        assert threshold.running_gain.item() == pytest.approx(gain, rel=1e-5)
        assert threshold.ratio.item() == pytest.approx(ratio, abs=1e-6)
        assert threshold.level.item() == pytest.approx(level + step, abs=1e-6)


def masking(**more):
    options = dict(threshold=dict(type="difficulty", target_gain=1.3), random_share=0.25)
    return AdversarialMasking(0.5, 4, **options | more)


def test_a_training_step_is_heard_of_and_nothing_else():
    strategy, images = masking(), torch.randn(8, 3, 32, 32)
    error = torch.rand(8, 64)

    def state():
        return [buffer.clone() for buffer in strategy.threshold.buffers()]

    patch_mask = strategy(images)
    before = state()
    with torch.no_grad():
        strategy.total_loss(torch.zeros(()), error, patch_mask)
    strategy.eval()
    strategy.total_loss(torch.zeros(()), error, strategy(images))
    assert all(map(torch.equal, before, state()))
    strategy.train()
    strategy.total_loss(torch.zeros(()), error, patch_mask).backward()
    assert not torch.equal(before[-1], state()[-1])
    assert all(not buffer.requires_grad for buffer in strategy.threshold.buffers())


def test_a_checkpoint_goes_on():
    one, two, images = masking(), masking(), torch.randn(8, 3, 32, 32)
    two.load_state_dict(one.state_dict())

    def steps(strategy, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            patch_mask = strategy(images, generator)
            error = torch.rand(8, 64, generator=generator)
            strategy.total_loss(torch.zeros(()), error, patch_mask)

    steps(one, 10, 0)
    assert {"threshold.errors", "threshold.ratio", "threshold.level"} < one.state_dict().keys()
    two.load_state_dict(one.state_dict())
    for strategy in (one, two):
        steps(strategy, 5, 1)
    assert torch.equal(one.threshold.ratio, two.threshold.ratio)
    assert one.threshold.ratio != 0.5


def test_errors_of_nothing_do_not_move_it():
    threshold = Difficulty(1.2)
    selection = see(threshold, 0.5, torch.randn(2, LENGTH))
    threshold.observe(torch.zeros(2, LENGTH), selection.patch_mask, selection.drawn_at_random)
    assert threshold.ratio == 0.5


@pytest.mark.parametrize("target", [0.0, -1.0, 1.0, float("inf"), float("nan")])
def test_a_target_of_no_difficulty_is_refused(target):
    with pytest.raises(ValueError, match=r"above 0 and not 1 .*got"):
        Difficulty(target)


@pytest.mark.parametrize("share", [0.0, dict(start=0.5, end=0.0)])
def test_it_asks_for_patches_drawn_at_random(share):
    with pytest.raises(ValueError, match=r"expected random_share > 0 all the time"):
        masking(random_share=share)
    threshold = Difficulty(1.2)
    selection = see(threshold, 0.5, torch.randn(2, LENGTH), random_share=0.0)
    with pytest.raises(ValueError, match=r"expected random_share > 0 all the time"):
        threshold.observe(torch.rand(2, LENGTH), selection.patch_mask, None)


@groups_end
def test_ranks_agree_and_do_what_one_process_does_with_all_of_their_images(tmp_path):
    """Two real processes; difficulty and number of images differ between them."""
    code = """
        import sys, torch, torch.distributed as dist
        from amn_masking import PatchMask
        from amn_masking.thresholds import Difficulty
        rank, meeting = int(sys.argv[1]), sys.argv[2]
        if meeting != "alone":
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        threshold = Difficulty(1.3)
        threshold.ratio.fill_(0.5)
        states = []
        for step in range(20):
            generator = torch.Generator().manual_seed(step)
            z = torch.randn(8, 64, generator=generator)
            noise = torch.rand(8, 64, generator=generator)
            # The masks are given, so that only what is heard of them differs between ranks.
            mask = z + noise > 0.6
            drawn = mask & (noise < 0.4)
            error = torch.exp(z) * torch.arange(1, 9)[:, None]
            rows = slice(0, 8) if meeting == "alone" else slice(0, 3) if rank == 0 else slice(3, 8)
            chosen = PatchMask.from_mask(mask[rows], (8, 8))
            threshold.observe(error[rows], chosen, drawn[rows])
            states.append([threshold.ratio.item(), *threshold.errors.flatten().tolist()])
        print(states, flush=True)
        if meeting != "alone":
            dist.destroy_process_group()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    runs = [
        ("0", f"file://{tmp_path}/meeting"),
        ("1", f"file://{tmp_path}/meeting"),
        ("0", "alone"),
    ]
    processes = [
        subprocess.Popen([*command, *run], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for run in runs
    ]
    printed = [ast.literal_eval(process.communicate(timeout=120)[0]) for process in processes]
    one, two, alone = printed
    assert one == two
    assert len({tuple(state) for state in one}) == 20
    for state, expected in zip(one, alone, strict=True):
        assert state == pytest.approx(expected, abs=2e-5)
