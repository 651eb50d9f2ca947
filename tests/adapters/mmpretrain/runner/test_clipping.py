"""Clipping for two networks that share an optimizer."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from tests.helpers.loud import MASKING, assert_equal, change, logged, states
from tests.helpers.runner import train


def one_clipped_step(cfg, factor, **changes):
    changes = {"train_dataloader.batch_size": 42, "custom_hooks.0.factor": factor} | changes
    return train(cfg, **changes)


@pytest.mark.parametrize("kind", ["OptimWrapper", "CpuAmpOptimWrapper"])
def test_a_large_masking_gradient_does_not_eat_the_clip_norm(cfg, kind):
    """A million times the masking network's gradient: the autoencoder's step is the same."""
    sgd = dict(_delete_=True, type="SGD", lr=1.0, weight_decay=0.0)
    cfg.merge_from_dict({"optim_wrapper.optimizer": sgd, "optim_wrapper.type": kind})
    cfg.param_scheduler = []
    cfg.optim_wrapper.clip_grad = dict(max_norm=0.1)
    quiet, loud = (one_clipped_step(cfg, factor) for factor in (1.0, 1e6))
    before, after = states(loud)
    names = [name for name in before if not name.startswith(MASKING)]
    assert_equal(states(quiet)[-1], after, names)
    # Each is clipped to max_norm by its own norm; the log has the autoencoder's.
    assert change(before, after, masking=True) == pytest.approx(0.1, rel=1e-3)
    assert change(before, after, masking=False) == pytest.approx(0.1, rel=1e-3)
    assert logged(quiet, "grad_norm") == logged(loud, "grad_norm")
    assert 0.1 < logged(loud, "grad_norm")[0] < 1e3


def test_whoever_constructs_the_optimizer_wrapper(cfg):
    """Under another default scope mmengine takes its own constructor, or a config names one."""
    sgd = dict(_delete_=True, type="SGD", lr=1.0, weight_decay=0.0)
    cfg.merge_from_dict({"optim_wrapper.optimizer": sgd})
    cfg.param_scheduler = []
    cfg.optim_wrapper.clip_grad = dict(max_norm=0.1)
    named = {"optim_wrapper.constructor": "mmengine.DefaultOptimWrapperConstructor"}
    before, after = states(one_clipped_step(cfg, 1e6, **named))
    assert change(before, after, masking=False) == pytest.approx(0.1, rel=1e-3)


def test_clipping_by_value_reaches_both_networks(cfg):
    sgd = dict(_delete_=True, type="SGD", lr=1.0, weight_decay=0.0)
    cfg.merge_from_dict({"optim_wrapper.optimizer": sgd})
    cfg.param_scheduler = []
    cfg.optim_wrapper.clip_grad = dict(type="value", clip_value=1e-4)
    before, after = states(one_clipped_step(cfg, 1e6))
    for masking in (False, True):
        names = [name for name in before if name.startswith(MASKING) == masking]
        largest = max((after[n] - before[n]).abs().max().item() for n in names)
        assert largest == pytest.approx(1e-4, rel=1e-2)


def test_without_masking_the_clipping_is_stock(cfg):
    cfg.optim_wrapper.clip_grad = dict(max_norm=0.1)
    cfg.custom_hooks = []
    runner = train(cfg, **{"model.masking": None})
    assert runner.optim_wrapper.clip_func is torch.nn.utils.clip_grad_norm_
