"""What the log says, and what it costs in a step that writes no line."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.loud import logged
from tests.helpers.runner import train

# What waits for the device, as a GPU would.
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}


class Reads(TorchDispatchMode):
    """Counts the operations that read something back from the device."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function in READS
        return function(*args, **kwargs or {})


@HOOKS.register_module()
class CountReads(Hook):
    """The reads of each step, its hooks included."""

    priority = 0  # with NumbersHook, which was registered later and so comes after it

    def before_train(self, runner):
        self.reads = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.mode = Reads()
        self.mode.__enter__()


@HOOKS.register_module()
class StopCounting(Hook):
    priority = 100

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        (counter,) = (hook for hook in runner.hooks if isinstance(hook, CountReads))
        counter.mode.__exit__(None, None, None)
        counter.reads.append(counter.mode.number)


def reads(cfg, **changes):
    hooks = [dict(type="CountReads"), dict(type="StopCounting")]
    changes |= {"default_hooks.logger.interval": 3, "default_hooks.logger.ignore_last": False}
    runner = train(cfg, custom_hooks=hooks, **changes)
    (counter,) = (hook for hook in runner.hooks if isinstance(hook, CountReads))
    return counter.reads


def test_a_step_without_a_line_reads_no_more_than_the_stock_method(photos_config):
    sgd = dict(
        _delete_=True, type="SGD", lr=1e-3, weight_decay=0.0
    )  # AdamW counts its steps in CPU tensors
    photos_config.merge_from_dict({"optim_wrapper.optimizer": sgd})
    stock = reads(photos_config, **{"model.masking": None})
    ours = reads(photos_config)
    # The core looks at the scores for NaN; on a GPU by an assertion on the device. The first step
    # also proves that the mask was used, and every third writes a line.
    assert [ours[i] - 1 for i in (1, 3, 4)] == [stock[i] for i in (1, 3, 4)]


def test_a_line_is_about_all_steps_since_the_last(photos_config):
    """The mean of the steps, the least of the least, the largest of the largest."""
    photos_config.model.masking.threshold = dict(type="tracking", rate=0.1)
    each = train(photos_config)
    every = train(photos_config, **{"default_hooks.logger.interval": 3})
    for name in ("reconstruction", "adversarial", "mask_ratio", "threshold", "score_spread"):
        steps = torch.tensor(logged(each, name)).reshape(2, 3)
        assert logged(every, name) == pytest.approx(steps.mean(1).tolist(), rel=1e-5), name
    for name, reduce in (("mask_ratio_min", torch.amin), ("mask_ratio_max", torch.amax)):
        steps = torch.tensor(logged(each, name)).reshape(2, 3)
        assert logged(every, name) == pytest.approx(reduce(steps, 1).tolist()), name
    assert logged(every, "loss") == logged(each, "loss")
    assert len(logged(each, "loss")) == 6
