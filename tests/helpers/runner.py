"""mmengine's Runner in this process."""

from __future__ import annotations

from copy import deepcopy

from mmengine.runner import Runner

_runs = iter(range(10**6))


def train(cfg, **changes):
    """A Runner that has trained."""
    cfg = deepcopy(cfg)
    cfg.merge_from_dict(changes)
    # mmengine keeps its visualizers and logs by name, for the life of the process.
    cfg.experiment_name = f"hooks_{next(_runs)}"
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner
