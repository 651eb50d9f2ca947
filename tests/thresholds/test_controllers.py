"""What the controllers of free counts hold: in every type, in ``eval()``, once a step, on ranks."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.thresholds import Difficulty, Tracking
from tests.conftest import ROOT, groups_end
from tests.helpers.pictures import images_of
from tests.helpers.precision import HALF

TRACKING = dict(type="tracking", ratio_range=(0.02, 0.98))


@pytest.mark.parametrize("kind", ["tracking", "difficulty"])
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, torch.float64])
def test_controllers_stay_in_float32_and_keep_their_numbers(kind, dtype):
    masking = AdversarialMasking(0.75, 4, threshold=dict(type=kind), random_share=0.25)
    threshold = masking.threshold
    threshold.level.fill_(0.7512345)
    masking.to(dtype)
    assert next(masking.network.parameters()).dtype == dtype
    assert all(buffer.dtype == torch.float32 for buffer in threshold.buffers())
    assert threshold.level.item() == pytest.approx(0.7512345, abs=1e-7)
    images = images_of((6, 6), batch=8).to(dtype)
    patch_mask = masking(images)
    error = torch.rand(8, 36).to(dtype).requires_grad_()
    CombinedAdversarialLoss().adversarial_terms(error, patch_mask)[1].backward()
    assert all(buffer.dtype == torch.float32 for buffer in threshold.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, HALF])
def test_tracking_holds_its_ratio_in_every_type(dtype):
    """bfloat16 cannot tell 0.736 from 0.75 in steps of a controller."""
    torch.manual_seed(0)
    masking = AdversarialMasking(
        0.75, 4, threshold=TRACKING, network=dict(channels=4), random_share=0.0
    ).to(dtype)
    ratios = [masking(images_of((8, 8), 32, seed).to(dtype)).mask.mean() for seed in range(80)]
    assert torch.stack(ratios[40:]).mean().item() == pytest.approx(0.75, abs=0.005)


@pytest.mark.parametrize("target", [0.25, 0.75])
def test_tracking_holds_its_ratio_in_eval_too(target):
    """Where there is no noise: before the first training step, and after many."""
    torch.manual_seed(0)
    masking = AdversarialMasking(
        target, 4, threshold=TRACKING, network=dict(channels=4), random_share=0.0
    ).eval()
    assert masking(images_of((8, 8), 32)).mask.mean().item() == pytest.approx(target, abs=1 / 64)
    for seed in range(60):
        masking.train()(images_of((8, 8), 32, seed))
    ratios = [masking.eval()(images_of((8, 8), 32, seed)).mask.mean() for seed in range(100, 110)]
    assert torch.stack(ratios).mean().item() == pytest.approx(target, abs=0.02)


def test_a_loss_that_is_evaluated_twice_is_one_step():
    masking = AdversarialMasking(0.5, 4, threshold=dict(type="difficulty"), random_share=0.25)
    patch_mask = masking(images_of((6, 6), batch=4))
    error = torch.rand(4, 36, requires_grad=True)
    masking.total_loss(error.mean(), error, patch_mask)
    errors, ratio = masking.threshold.errors.clone(), masking.threshold.ratio.clone()
    masking.total_loss(error.mean(), 2 * error, patch_mask)
    assert torch.equal(masking.threshold.errors, errors)
    assert torch.equal(masking.threshold.ratio, ratio)
    masking.total_loss(error.mean(), 2 * error, masking(images_of((6, 6), batch=4)))
    assert not torch.equal(masking.threshold.errors, errors)


def test_so_are_the_losses_of_copies():
    masking = AdversarialMasking(0.5, 4, threshold=dict(type="difficulty"), random_share=0.25)
    patch_mask = masking(images_of((6, 6), batch=4))
    copies = [patch_mask.take(torch.arange(2)), patch_mask.to("cpu"), patch_mask]
    heard = []
    for copy in copies:
        error = torch.rand(len(copy.mask), 36, requires_grad=True)
        masking.total_loss(error.mean(), error, copy)
        heard.append(masking.threshold.errors.clone())
    assert heard[0].any()
    assert torch.equal(heard[1], heard[0])
    assert torch.equal(heard[2], heard[0])


@groups_end
def test_difficulty_is_the_same_on_all_ranks(tmp_path):
    """Two real processes with different errors and scores; what one process does with all of them
    is what they do together.
    """
    code = """
        import sys, torch, torch.distributed as dist
        from amn_masking.thresholds import Candidates, Difficulty
        rank, meeting = int(sys.argv[1]), sys.argv[2]
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        generator = torch.Generator().manual_seed(rank)
        threshold = Difficulty(1.2)
        numbers = []
        for _ in range(20):
            z = torch.randn(8, 49, generator=generator)
            selection = threshold(
                Candidates(z, (7, 7), z.sigmoid(), 0.5, 0.25, generator=generator)
            )
            error = (z * (1 + rank)).exp()
            threshold.observe(error, selection.patch_mask, selection.drawn_at_random)
            numbers += [threshold.ratio.item(), threshold.running_gain.item()]
            numbers += [threshold.offset.item(), threshold.eval_offset.item()]
        print(numbers, flush=True)
        dist.destroy_process_group()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), f"file://{tmp_path}/meeting"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks)
    assert printed[0] == printed[1]
    assert len(set(printed[0].strip("[]\n").split(", "))) > 40


def test_a_checkpoint_of_float32_numbers_loads_into_a_half_module():
    source, target = Tracking(), Difficulty().half()
    source.level.fill_(0.1234567)
    target.load_state_dict(source.state_dict(), strict=False)
    assert target.level.item() == pytest.approx(0.1234567, abs=1e-8)
