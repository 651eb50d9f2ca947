"""What the adapter relies on in mmengine and torch, with what has changed where it no longer holds.

These are no laws of this package: one that fails names the place to look at.
"""

from __future__ import annotations

import inspect

import pytest
from torch.utils.data import DataLoader

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.dataset import default_collate, pseudo_collate
from mmengine.hooks import CheckpointHook, LoggerHook, RuntimeInfoHook
from mmengine.optim import OptimWrapper
from mmengine.runner import CheckpointLoader, FlexibleRunner, IterBasedTrainLoop, Runner
from mmengine.runner.priority import get_priority

from amn_masking.adapters.mmpretrain.runner.numbers_hook import NumbersHook
from amn_masking.adapters.mmpretrain.runner.schedules_hook import SchedulesHook


def source(function):
    return inspect.getsource(inspect.unwrap(function))


@pytest.mark.parametrize("runner", [Runner, FlexibleRunner])
def test_train_calls_load_or_resume_when_all_is_built(runner):
    text = source(runner.train)
    said = f"{runner.__name__}.train no longer calls load_or_resume between building and the loop"
    assert text.count("self.load_or_resume()") == 1, said
    built = max(text.find("self.build_optim_wrapper("), text.find("self.strategy.prepare("))
    assert 0 < built < text.find("self.load_or_resume()") < text.find("train_loop.run()"), said


@pytest.mark.parametrize("name", ["resume", "load_checkpoint"])
def test_checkpoints_are_read_by_methods_that_take_the_file_first(name):
    method = inspect.unwrap(getattr(Runner, name))
    first = list(inspect.signature(method).parameters)[1]
    assert first == "filename", f"Runner.{name} no longer takes the file as its first argument"
    called = f"self.{name}("
    assert called in source(Runner.load_or_resume), f"Runner.load_or_resume no longer calls {name}"


def test_hooks_may_be_taken_out_of_the_runner_s_list():
    assert "return self._hooks" in source(Runner.hooks.fget), "Runner.hooks is no longer the list"


def test_local_files_are_the_scheme_without_a_name():
    assert "" in CheckpointLoader._schemes, "CheckpointLoader reads local files by another scheme"
    parameters = inspect.signature(CheckpointLoader.register_scheme).parameters
    assert "force" in parameters, "CheckpointLoader.register_scheme no longer replaces by force"


def test_all_hooks_get_one_dict_of_outputs_before_it_is_read():
    said = "RuntimeInfoHook no longer comes after a hook of the HIGHEST priority"
    highest = get_priority(NumbersHook.priority)
    assert highest < get_priority(RuntimeInfoHook.priority), said
    assert get_priority(SchedulesHook.priority) < get_priority("NORMAL")
    said = "RuntimeInfoHook no longer logs what is in the step's outputs"
    assert "outputs.items()" in source(RuntimeInfoHook.after_train_iter), said
    said = "the training loop no longer gives its hooks the dict that train_step returned"
    assert "outputs=outputs" in source(IterBasedTrainLoop.run_iter), said


def test_a_line_is_due_by_logger_hook_s_interval():
    assert LoggerHook(interval=7).interval == 7, "LoggerHook keeps its interval elsewhere"


def test_checkpoint_hook_says_when_it_writes():
    hook = CheckpointHook(interval=3, by_epoch=False, save_last=False, save_begin=2)
    said = "CheckpointHook keeps by_epoch, interval, save_last or save_begin elsewhere"
    assert (hook.by_epoch, hook.interval, hook.save_last, hook.save_begin) == (
        False,
        3,
        False,
        2,
    ), said


def test_the_optimizer_wrapper_clips_by_a_function_of_its_own():
    text = source(OptimWrapper._clip_grad)
    assert "self.clip_func(params, **self.clip_grad_kwargs)" in text, (
        "OptimWrapper no longer clips by self.clip_func(parameters, **self.clip_grad_kwargs)"
    )


@pytest.mark.parametrize("collate", [default_collate, pseudo_collate])
def test_mmengine_s_collate_functions_fail_at_the_mark(collate):
    """When this fails, runner/collate.py can go."""
    with pytest.raises(TypeError, match="_scope_"):
        collate([1, 2], _scope_="mmpretrain")


def test_a_loader_starts_new_workers_without_an_iterator():
    said = "torch's DataLoader no longer keeps its persistent workers in _iterator"
    assert DataLoader([0])._iterator is None, said
    assert "self._iterator is None" in source(DataLoader.__iter__), said
