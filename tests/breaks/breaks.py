"""Break the code on purpose, one line at a time, and see that the test meant for it fails.

For what mutation testing does not reach because it starts processes and trains: resume, ranks,
mixed precision, accumulation, clipping, averaged weights, export, meters. Each break is made in a
copy of the project; docs/results/breaks.md is the list.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MMPRETRAIN = "amn_masking/adapters/mmpretrain/"
MMPRETRAIN_TESTS = "adapters/mmpretrain/"
RUNNER_TESTS = MMPRETRAIN_TESTS + "runner/"
COPIED = ("amn_masking", "benchmarks", "configs", "demo", "docs", "tests", "pyproject.toml")


class Break(NamedTuple):
    """What is broken: ``old`` becomes ``new`` in ``file``, and ``test`` must fail.

    ``test`` is one test, or files and folders of which one test must fail, with spaces between.
    """

    what: str
    file: str
    old: str
    new: str
    test: str


BREAKS = (
    Break(
        "resume: random numbers are not restored",
        MMPRETRAIN + "runner/random_state.py",
        '    random.setstate(state["python"])\n',
        "    return\n",
        RUNNER_TESTS
        + "test_resume.py::test_a_resumed_run_equals_one_that_was_not_interrupted[no workers]",
    ),
    Break(
        "resume: the sampler gets another seed",
        MMPRETRAIN + "runner/random_state.py",
        'sampler.seed = state["sampler_seed"]',
        'sampler.seed = state["sampler_seed"] + 1',
        RUNNER_TESTS
        + "test_resume.py::test_a_resumed_run_equals_one_that_was_not_interrupted[no workers]",
    ),
    Break(
        "resume: the meters forget",
        MMPRETRAIN + "runner/meters_hook.py",
        'self.positions.load_state_dict(checkpoint[STATE]["positions"])',
        "pass",
        RUNNER_TESTS
        + "test_resume.py::test_a_resumed_run_equals_one_that_was_not_interrupted[no workers]",
    ),
    Break(
        "resume: every rank takes the first one's random numbers",
        MMPRETRAIN + "runner/random_state.py",
        "self.resumed[get_rank()]",
        "self.resumed[0]",
        RUNNER_TESTS + "test_resume.py::test_every_rank_goes_on_with_its_own_random_numbers",
    ),
    Break(
        "resume: torch reads the checkpoint by itself, as in stock mmengine",
        MMPRETRAIN + "runner/resume.py",
        "with torch.serialization.safe_globals([*SAFE_GLOBALS, *OTHER_NUMPY]):",
        "with torch.serialization.safe_globals([]):",
        RUNNER_TESTS + "test_resume.py::test_kill_9_in_mid_epoch_and_the_same_command_again",
    ),
    Break(
        "resume: the safety is off",
        MMPRETRAIN + "runner/resume.py",
        "return torch.load(path, map_location=map_location)",
        "return torch.load(path, map_location=map_location, weights_only=False)",
        RUNNER_TESTS
        + "test_resume.py::test_a_bad_checkpoint_is_refused_and_nothing_is_touched[code]",
    ),
    Break(
        "resume: another model's checkpoint is not looked at",
        MMPRETRAIN + "runner/resume.py",
        "        check_resumable(checkpoint, unwrapped(runner), self.filename)",
        "        pass",
        RUNNER_TESTS + "test_resume.py::test_resuming_without_the_masking_network",
    ),
    Break(
        "schedules: the iteration is not passed on",
        MMPRETRAIN + "runner/schedules_hook.py",
        "return min(1.0, epoch / loop.max_epochs), runner.iter, epoch",
        "return min(1.0, epoch / loop.max_epochs), 0, epoch",
        RUNNER_TESTS
        + "test_schedules_hook.py::test_a_warm_up_by_epoch_and_a_random_share_by_iteration",
    ),
    Break(
        "schedules: the epoch is counted by this run's batches",
        MMPRETRAIN + "runner/schedules_hook.py",
        "epoch = runner.epoch + min(batch_idx, length) / length",
        "epoch = runner.iter / length",
        RUNNER_TESTS + "test_schedules_hook.py::"
        "test_a_run_resumed_with_another_batch_size_is_where_its_epochs_are",
    ),
    Break(
        "ranks: A is a mean over the local batch's patches",
        "amn_masking/losses.py",
        "((weight * error).sum(1) / weight.sum(1).clamp_min(1e-12)).mean()",
        "(weight * error).sum() / weight.sum()",
        MMPRETRAIN_TESTS + "test_distributed.py::"
        "test_two_ranks_give_the_gradient_of_one_process_with_twice_the_batch[quantile]",
    ),
    Break(
        "ranks: the log has rank 0's numbers",
        MMPRETRAIN + "ranks.py",
        "    if get_world_size() > 1:\n",
        "    if False:\n",
        MMPRETRAIN_TESTS
        + "test_distributed.py::test_the_ranks_log_the_same_numbers_and_those_are_of_both",
    ),
    Break(
        "ranks: positions are counted by each rank alone",
        MMPRETRAIN + "runner/meters_hook.py",
        '            all_reduce(share, "mean")\n',
        "",
        MMPRETRAIN_TESTS + "test_distributed.py::test_the_meters_are_of_both_ranks",
    ),
    Break(
        "ranks: tracking follows each rank's own masks",
        "amn_masking/thresholds/tracking.py",
        "distributed.all_reduce(",
        "(lambda *_, **__: None)(",
        MMPRETRAIN_TESTS
        + "test_distributed.py::test_the_ranks_end_with_the_same_weights_and_tracking_buffers",
    ),
    Break(
        "FSDP: the hooks do not look",
        MMPRETRAIN + "runner/pictures_hook.py",
        "    if any(isinstance(module, FullyShardedDataParallel)",
        "    if False and any(isinstance(module, FullyShardedDataParallel)",
        MMPRETRAIN_TESTS + "test_distributed.py::"
        "test_hooks_that_need_the_whole_model_refuse_fsdp[MaskingMetersHook]",
    ),
    Break(
        "AMP: the mask is made inside autocast",
        "amn_masking/strategies/adversarial.py",
        "enabled=False)",
        "enabled=True)",
        RUNNER_TESTS + "test_training_options.py::"
        "test_under_autocast_the_mask_and_its_gradient_are_made_in_float32[quantile]",
    ),
    Break(
        "accumulation: the masking network forgets all but the last batch",
        "amn_masking/strategies/adversarial.py",
        "        scores = self.network(images.to(weight.dtype))\n",
        "        self.network.zero_grad()\n        scores = self.network(images.to(weight.dtype))\n",
        RUNNER_TESTS + "test_training_options.py::"
        "test_accumulation_gives_both_networks_the_gradient_of_the_mean_loss",
    ),
    Break(
        "clipping: one norm for both networks",
        MMPRETRAIN + "runner/clipping.py",
        "if wrapper.clip_grad_kwargs:",
        "if False:",
        RUNNER_TESTS + "test_clipping.py::"
        "test_a_large_masking_gradient_does_not_eat_the_clip_norm[OptimWrapper]",
    ),
    Break(
        "EMA: a tensor with a graph stays on the module",
        "amn_masking/strategies/adversarial.py",
        "        chosen = selection.patch_mask\n",
        "        chosen, self.kept = selection.patch_mask, logits\n",
        RUNNER_TESTS + "test_training_options.py::"
        "test_ema_averages_the_masking_network_and_keeps_its_buffers[False]",
    ),
    Break(
        "export: a norm takes the other norm's weights",
        "amn_masking/tools/export.py",
        '"ln2": "norm2"',
        '"ln2": "norm1", "ln1 ": "norm2"',
        "tools/test_export.py",
    ),
    Break(
        "export: masking network and decoder come along",
        "amn_masking/tools/checkpoints.py",
        '        if name.startswith("backbone.") and isinstance(tensor, Tensor)\n',
        "        if isinstance(tensor, Tensor)\n",
        "tools/test_checkpoints.py",
    ),
    Break(
        "gain: the random masks hide other counts",
        "amn_masking/meters.py",
        "        patch_mask.num_visible // slots,\n",
        "        patch_mask.num_visible // slots - 1,\n",
        RUNNER_TESTS + "test_meters_hook.py::"
        "test_the_gain_is_learned_over_random_error_on_the_step_s_batch[quantile]",
    ),
)


def named_tests(broken: Break) -> list[str]:
    """One test, whose name may hold spaces; or files and folders, with spaces between."""
    return [broken.test] if "::" in broken.test else broken.test.split()


def run(broken: Break) -> bool:
    """Whether the test fails on the broken code; and passes, to begin with, on what there is."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder, name))
        path = Path(folder, broken.file)
        text = path.read_text()
        if broken.old not in text:
            raise ValueError(
                f"{broken.what}: expected {broken.old!r} in {broken.file}; bring it up to date"
            )
        path.write_text(text.replace(broken.old, broken.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *(f"tests/{name}" for name in named_tests(broken))],
            cwd=folder, capture_output=True, text=True,
            env={"HYPOTHESIS_PROFILE": "mutants", **os.environ, "PYTHONPATH": folder},
        )  # fmt: skip
        if done.returncode not in (0, 1):  # 1: a test failed; anything else: no test ran
            raise RuntimeError(f"{broken.what}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 1
