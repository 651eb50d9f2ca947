"""A run that was stopped and resumed draws the random numbers of one that was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import get_worker_info

from amn_masking.adapters.mmpretrain.runner import install


class RandomStateHook(Hook):
    """Keeps the state of the random-number generators, of every rank, in the checkpoint.

    With it, a run by epochs that is resumed from a checkpoint of an epoch's end equals one that
    was never interrupted, bit for bit where the arithmetic is deterministic, as on a CPU. That
    asks for the same config and the same number of ranks. It keeps Python's, numpy's and torch's
    generators, that of the rank's CUDA device, and the sampler's seed.

    The workers of a dataloader have generators of their own. They are started anew after each
    checkpoint, also under ``persistent_workers``, seeded from the main process's generator; so
    with workers the augmentations are other draws than without this hook.

    Where it cannot hold, the log says so at the resume: a checkpoint within an epoch, after which
    mmengine begins the epoch again; loops by iteration; another number of ranks; a checkpoint
    that was written without the hook, or with several ranks between CheckpointHook's own
    intervals (``save_best``). Validation between epochs that draws random numbers, and
    gradients accumulated across an epoch's end, are not kept either.
    """

    # After whatever trains or draws, right before CheckpointHook (VERY_LOW, 90).
    priority = 85

    def __init__(self) -> None:
        # A FlexibleRunner builds its model after its dataloaders, whose collate function may need
        # what a model's building would install.
        install()
        self.states: list[dict[str, Any]] = []
        self.collected_at = -1
        self.resumed: list[dict[str, Any]] | None = None
        self.within_epoch = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.resumed = checkpoint.get("random_state")

    def before_train_epoch(self, runner: Runner) -> None:
        self.within_epoch = True

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if getattr(loader, "num_workers", 0):  # a stand-in for a loader has none
            loader.worker_init_fn = partial(seed_worker, loader.worker_init_fn, get_rank())
        # Not in after_load_checkpoint: the Runner seeds anew after it. And a run that only takes
        # over weights, by load_from, begins at 0 and with its own numbers.
        if runner.iter > 0:
            doubt = self._restore(runner)
            if doubt:
                runner.logger.warning(
                    f"The run goes on, but not bit for bit as if it had not stopped: {doubt}."
                )

    def after_train_epoch(self, runner: Runner) -> None:
        self.within_epoch = False
        self._collect(runner, by_epoch=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._collect(runner, by_epoch=False)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # Only the first rank comes here, so the others' states were gathered before. Not so where
        # something else than CheckpointHook's interval writes, such as save_best.
        others = self.states[1:] if self.collected_at == runner.iter else []
        checkpoint["random_state"] = [random_state(runner), *others]
        checkpoint["random_state"][0].update(
            within_epoch=self.within_epoch, batches=len(runner.train_dataloader)
        )

    def _collect(self, runner: Runner, by_epoch: bool) -> None:
        """Gather the states of all ranks where a CheckpointHook is about to write."""
        for hook in runner.hooks:
            if not isinstance(hook, CheckpointHook) or hook.by_epoch != by_epoch:
                continue
            every = hook.every_n_epochs if by_epoch else hook.every_n_train_iters
            is_last = hook.is_last_train_epoch if by_epoch else hook.is_last_train_iter
            if every(runner, hook.interval, hook.save_begin) or (
                hook.save_last and is_last(runner)
            ):
                self.states = all_gather_object(random_state(runner))
                self.collected_at = runner.iter
                # A fresh start for the workers, as after a resume.
                runner.train_dataloader._iterator = None
                return

    def _restore(self, runner: Runner) -> str:
        """Take up the stored state; says what stands in the way of an equal run."""
        if self.resumed is None:
            return "the checkpoint holds no random_state, it was written without RandomStateHook"
        if len(self.resumed) != get_world_size():
            return (
                f"the checkpoint holds the random numbers of {len(self.resumed)} ranks, and now "
                f"there are {get_world_size()}"
            )
        set_random_state(runner, self.resumed[get_rank()])
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return "that holds for loops by epoch only"
        if self.resumed[0]["within_epoch"]:
            return (
                f"the checkpoint was written within epoch {runner.epoch + 1}, which begins again "
                "with its first batch; for an equal run save at the end of epochs "
                "(CheckpointHook(by_epoch=True))"
            )
        before, now = self.resumed[0]["batches"], len(runner.train_dataloader)
        if before != now:
            return f"an epoch had {before} batches and now has {now}"
        return ""


def random_state(runner: Runner) -> dict[str, Any]:
    """The state of this rank's generators: numbers, lists and tensors only, so that a checkpoint
    can be read with torch's ``weights_only``.
    """
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    state = {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "sampler_seed": getattr(runner.train_dataloader.sampler, "seed", None),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(runner: Runner, state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    # Loading a checkpoint on a GPU moves its tensors there; generators want theirs on the CPU.
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    if state["sampler_seed"] is not None:
        runner.train_dataloader.sampler.seed = state["sampler_seed"]


def seed_worker(init_fn: Callable[[int], None] | None, rank: int, worker_id: int) -> None:
    """Seed a dataloader's worker from the main process's generator.

    mmengine seeds them with the same constant whenever they start, so that they would draw the
    same augmentations again after every start.
    """
    if init_fn is not None:
        init_fn(worker_id)
    info: Any = get_worker_info()
    seed = (info.seed + rank * info.num_workers) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
