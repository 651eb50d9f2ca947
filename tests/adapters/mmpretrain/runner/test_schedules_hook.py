"""Schedules in a real Runner: by epoch, by iteration, after a resume, without epochs."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.hooks import Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from amn_masking.adapters.mmpretrain.runner.meters_hook import MaskingMetersHook
from tests.helpers.runner import train
from tests.helpers.small_mae import build, step


@HOOKS.register_module()
class Watch(Hook):
    """The strength, the random share and the gradient's size in every step."""

    def __init__(self):
        self.seen, self.gradients, self.weights = [], [], []

    def before_train(self, runner):
        def look(optimizer, args, kwargs):  # mmengine drops the gradients right after the step
            self.gradients.append([p.grad for p in runner.model.masking.parameters()])

        runner.optim_wrapper.optimizer.register_step_pre_hook(look)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        masking = runner.model.masking
        self.seen.append((masking.strength, masking.random_share))
        self.weights.append([parameter.detach().clone() for parameter in masking.parameters()])


def watched(cfg, **changes):
    runner = train(cfg, custom_hooks=[dict(type="Watch")], **deepcopy(changes))
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, Watch))
    return hook


BY_EPOCH = dict(type="linear", start=0.0, end=1.0, begin=1, until=3, by="epoch")
# 3 iterations an epoch.
BY_EPOCH_VALUES = [0, 0, 0, 0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1]


def test_a_warm_up_by_epoch_and_a_random_share_by_iteration(photos_config):
    random_share = dict(type="linear", start=1.0, end=0.0, begin=2, until=6, by="iter")
    hook = watched(
        photos_config,
        **{
            "model.masking.strength": BY_EPOCH,
            "model.masking.random_share": random_share,
            "train_cfg.max_epochs": 4,
        },
    )
    strength, share = zip(*hook.seen, strict=True)
    assert strength == pytest.approx(BY_EPOCH_VALUES)
    assert share == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0, 0])


def test_the_network_rests_while_it_warms_up_and_has_a_gradient(photos_config):
    hook = watched(photos_config, **{"model.masking.strength": BY_EPOCH, "train_cfg.max_epochs": 2})
    assert len(hook.gradients) == 6
    assert all(gradient is not None for step in hook.gradients for gradient in step)
    assert not any(bool(gradient.any()) for step in hook.gradients[:4] for gradient in step)
    for name, before, after in zip(range(6), hook.weights[0], hook.weights[3], strict=True):
        assert torch.equal(before, after), name
    assert not any(
        torch.equal(before, after)
        for before, after in zip(hook.weights[3], hook.weights[5], strict=True)
    )


def test_one_epoch_is_an_epoch(photos_config):
    """A short trial of a long recipe goes as the recipe begins."""
    schedule = BY_EPOCH | dict(begin=0, until=2)
    hook = watched(photos_config, **{"model.masking.strength": schedule, "train_cfg.max_epochs": 1})
    assert [strength for strength, _ in hook.seen] == pytest.approx([0, 1 / 6, 2 / 6])


@pytest.mark.parametrize("as_type", [True, False])
def test_a_loop_without_epochs_takes_iterations_and_refuses_epochs(photos_config, as_type):
    loop = dict(type="IterBasedTrainLoop") if as_type else dict(by_epoch=False)
    loops = {
        "train_cfg": dict(_delete_=True, max_iters=5, **loop),
        "train_dataloader.sampler": dict(type="InfiniteSampler"),
        "param_scheduler": [],
        "log_processor.by_epoch": False,
        "default_hooks.checkpoint.by_epoch": False,
    }
    by_iter = BY_EPOCH | dict(by="iter")
    hook = watched(photos_config, **loops, **{"model.masking.strength": by_iter})
    assert [strength for strength, _ in hook.seen] == pytest.approx([0, 0, 0.5, 1, 1])
    with pytest.raises(ValueError, match=r"EpochBasedTrainLoop only.*use by='iter'"):
        watched(photos_config, **loops, **{"model.masking.strength": BY_EPOCH})


@LOOPS.register_module()
class Marathon(IterBasedTrainLoop):
    """A user's loop by iterations, whose name does not say so."""


LOOPS.register_module(name="Lap", module=EpochBasedTrainLoop)
ONE_LONG = {
    "train_dataloader.sampler": dict(type="InfiniteSampler"),
    "param_scheduler": [],
    "log_processor": dict(by_epoch=False),
    "default_hooks.checkpoint.by_epoch": False,
}


def test_the_loop_is_asked_and_not_its_name(photos_config):
    strength = {"model.masking.strength": BY_EPOCH}
    marathon = dict(_delete_=True, type="Marathon", max_iters=5)
    with pytest.raises(ValueError, match=r"EpochBasedTrainLoop only.*use by='iter'"):
        watched(photos_config, train_cfg=marathon, **ONE_LONG, **strength)
    lap = dict(_delete_=True, type="Lap", max_epochs=4)
    hook = watched(photos_config, train_cfg=lap, **strength)
    assert [strength for strength, _ in hook.seen] == pytest.approx(BY_EPOCH_VALUES)


def test_a_runner_that_was_built_in_python_without_a_config(photos_config):
    cfg = photos_config
    cfg.merge_from_dict({"model.masking.strength": BY_EPOCH, **ONE_LONG})
    names = ("model", "train_dataloader", "optim_wrapper", "work_dir", "default_scope")
    parts = {name: cfg[name] for name in names}
    runner = Runner(
        **parts, train_cfg=dict(by_epoch=False, max_iters=5), experiment_name="without_a_config"
    )
    with pytest.raises(ValueError, match=r"EpochBasedTrainLoop only.*use by='iter'"):
        runner.train()


@HOOKS.register_module()
class StopAfter(Hook):
    """Ends the training after so many epochs of its plan, as if it was killed there."""

    def __init__(self, epochs):
        self.epochs = epochs

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.epochs:
            runner.train_loop.stop_training = True


def test_a_resumed_run_goes_on_where_it_stopped(photos_config):
    """Schedules and the meters' running shares."""
    options = {
        "model.masking.strength": BY_EPOCH,
        "train_cfg.max_epochs": 4,
        "default_hooks.checkpoint.interval": 1,
    }
    hooks = [dict(type="Watch"), dict(type="MaskingMetersHook")]
    first = train(photos_config, custom_hooks=[*hooks, dict(type="StopAfter", epochs=2)], **options)
    second = train(photos_config, custom_hooks=hooks, resume=True, **options)
    seen = []
    for runner in (first, second):
        (watch,) = (hook for hook in runner.hooks if isinstance(hook, Watch))
        seen.append([strength for strength, _ in watch.seen])
    assert [len(strengths) for strengths in seen] == [6, 6]
    assert seen[0] + seen[1] == pytest.approx(BY_EPOCH_VALUES)
    (meters,) = (hook for hook in second.hooks if isinstance(hook, MaskingMetersHook))
    assert meters.positions.batches == {(4, 4): 12}


@pytest.mark.parametrize("by", ["epoch", "progress"])
def test_a_run_resumed_with_another_batch_size_is_where_its_epochs_are(photos_config, by):
    """Twice as many batches an epoch after two of four epochs: half of the way."""
    ends = dict(begin=1, until=3) if by == "epoch" else dict(begin=0.25, until=0.75)
    options = {
        "model.masking.strength": dict(type="linear", start=0.0, end=1.0, by=by, **ends),
        "train_cfg.max_epochs": 4,
        "default_hooks.checkpoint.interval": 1,
    }
    hooks = [dict(type="Watch"), dict(type="RandomStateHook")]
    train(photos_config, custom_hooks=[*hooks, dict(type="StopAfter", epochs=2)], **options)
    options |= {"train_dataloader.batch_size": 7, "param_scheduler": []}
    runner = train(photos_config, custom_hooks=hooks, resume=True, **options)
    (watch,) = (hook for hook in runner.hooks if isinstance(hook, Watch))
    expected = [0.5 + i / 12 for i in range(6)] + [1.0] * 6
    assert [strength for strength, _ in watch.seen] == pytest.approx(expected)
    log = "".join(path.read_text() for path in Path(runner.work_dir).glob("*/*.log"))
    assert "not bit for bit" in log
    assert "an epoch had 3 batches and now has 6" in log
    assert "within epoch" not in log


def test_a_runner_that_has_finished_does_not_move_a_model_that_is_used_by_hand(photos_config):
    warm_up = dict(type="linear", start=0.0, end=1.0, begin=0.5)
    trained = train(photos_config, **{"model.masking.strength": warm_up}).model
    assert trained.masking.strength > 0.5
    model = build(masking=dict(type="AdversarialMasking", strength=warm_up))
    assert step(model)[0]["strength"] == 0
    model.masking.set_progress(0.75)
    assert step(model)[0]["strength"] == 0.5
