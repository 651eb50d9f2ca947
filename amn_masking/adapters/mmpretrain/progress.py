"""How far the Runner is that trains a model: what schedules count by."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub


class Progress(NamedTuple):
    """How far a Runner is: what schedules count by."""

    progress: float
    iteration: int
    epoch: float | None  # in fractions; None where the loop has no epochs


@torch.compiler.disable  # the cache too: what is compiled would go past it
@functools.lru_cache(maxsize=1)
def counts_iterations(config: str) -> bool:
    """Whether the training loop of a Runner's config, as text, is one without epochs."""
    loop = Config.fromstring(config, ".py").get("train_cfg") or {}
    return not loop.get("by_epoch", True) or "Iter" in str(loop.get("type"))


class RunnerProgress:
    """How far the Runner is that trains a model.

    mmengine's counts are those of the newest Runner of the process, and stay when it has finished.
    They mean nothing to a model that is used by hand. A Runner initialises the weights of its model
    right before it trains it, so what counts is what moves after that.
    """

    def __init__(self) -> None:
        self.run: str | None = None
        self.stale: int | None = None

    def begin(self) -> None:
        """A Runner may be about to train: its counts are from before."""
        hub = MessageHub.get_current_instance()
        self.run, self.stale = hub.instance_name, hub.get_info("iter")

    def now(self) -> Progress | None:
        """How far it is; None where no Runner trains this model.

        A resumed Runner goes on counting where it stopped, and so do the schedules.
        """
        hub = MessageHub.get_current_instance()
        iteration, max_iters = hub.get_info("iter"), hub.get_info("max_iters")
        if hub.instance_name != self.run or iteration == self.stale or not max_iters:
            return None
        self.stale = None  # of this run from here on
        done = min(1.0, iteration / max_iters)
        max_epochs = hub.get_info("max_epochs", 1)
        # An IterBasedTrainLoop says that it has one epoch, "for compatibility".
        if max_epochs == 1 and counts_iterations(hub.get_info("cfg", "")):
            return Progress(done, iteration, None)
        return Progress(done, iteration, iteration * max_epochs / max_iters)
