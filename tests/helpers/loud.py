"""A Runner whose masking network's gradient is multiplied, and what its steps changed."""

from __future__ import annotations

import copy

import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS

MASKING = "masking.network"


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's AmpOptimWrapper, which only its constructor keeps off the CPU."""

    def __init__(self, init_scale=1.0, **options):
        OptimWrapper.__init__(self, **options)
        self.loss_scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
        self.cast_dtype = torch.bfloat16
        self._scale_update_param = None


@HOOKS.register_module()
class LoudMaskingHook(Hook):
    """Multiplies the masking network's gradient, and keeps every step's weights."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def before_train(self, runner):
        self.states = [copy.deepcopy(runner.model.state_dict())]
        for parameter in runner.model.masking.parameters():
            parameter.register_hook(lambda gradient: gradient * self.factor)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(copy.deepcopy(runner.model.state_dict()))


def states(runner):
    """Weights before the training and after each step."""
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, LoudMaskingHook))
    return hook.states


def logged(runner, name):
    return [float(x) for x in runner.message_hub.get_scalar(f"train/{name}").data[0]]


def assert_equal(one, other, names):
    assert names
    for name in names:
        assert torch.equal(one[name], other[name]), name


def change(before, after, masking):
    """Norm of what a step changed in one of the two networks."""
    names = [n for n in before if n.startswith(MASKING) == masking and "preproc" not in n]
    return torch.cat([(after[n] - before[n]).flatten() for n in names]).norm().item()
