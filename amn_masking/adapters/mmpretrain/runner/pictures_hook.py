"""Hooks for mmengine's Runner."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, set_random_seed
from torch.distributed.fsdp import FullyShardedDataParallel

from amn_masking.adapters.mmpretrain.mixin import images_of
from amn_masking.visualize import draw_masks


class MaskingPicturesHook(Hook):
    """Writes a grid of pictures to the Runner's visualizer: what is masked and what comes back.

    A row per image: input | score map | masked input | reconstruction. The images are taken from
    the training set once, evenly spaced, and stay the same, so that pictures of one run can be
    compared. The first picture is drawn before training, the last one at its end. A learned mask
    is drawn without its exploration noise: what the network would hide first (with a free count,
    another number of patches than in training). Drawing does not
    move the random numbers of the training. Without ``masking=`` it rests, with a warning.

    Args:
        interval: draw every so many epochs, or iterations.
        by_epoch: whether the interval counts epochs.
        num_images: rows.

    Raises:
        ValueError: an option below 1; at the start of training, a model in FSDP's shards.
    """

    priority = "LOW"

    def __init__(self, interval: int = 1, by_epoch: bool = True, num_images: int = 6) -> None:
        for name, value in (("interval", interval), ("num_images", num_images)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.interval = interval
        self.by_epoch = by_epoch
        self.num_images = num_images
        self.batch: Any = None
        self.drawn_at = -1
        self.failed = False

    # On every rank: one that refuses alone would leave the others waiting.
    def before_train(self, runner: Runner) -> None:
        model = model_with_masks(runner, self)
        self.failed = model is None
        if not self.failed:
            self._begin(runner, model)

    @master_only
    def _begin(self, runner: Runner, model: Any) -> None:
        loader = runner.train_dataloader
        count = min(self.num_images, len(loader.dataset))
        picks = np.linspace(0, len(loader.dataset) - 1, count).round().astype(int)
        with same_random_numbers(seed=0):
            samples = loader.collate_fn([loader.dataset[int(index)] for index in picks])
        self.batch = model.data_preprocessor(samples, training=False)
        if runner.iter == 0:
            self._draw(runner, 0)

    @master_only
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._draw(runner, runner.iter)

    @master_only
    def after_train(self, runner: Runner) -> None:
        if self.drawn_at != runner.iter:
            self._draw(runner, runner.iter)

    def _draw(self, runner: Runner, step: int) -> None:
        """Draw; a picture that cannot be drawn is said once and never stops a run."""
        if self.failed:
            return
        try:
            runner.visualizer.add_image("masking", self._picture(unwrapped(runner)), step=step)
            self.drawn_at = step
        except Exception as error:
            self.failed = True
            runner.logger.warning(
                f"MaskingPicturesHook draws no pictures in this run: {type(error).__name__}: "
                f"{error}"
            )

    def _picture(self, model: Any) -> np.ndarray:
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with same_random_numbers(seed=0):
                patch_mask, reconstruction = model.reconstruct(**self.batch)
        finally:
            for module, training in modes.items():
                module.training = training
        mean, std = (getattr(model.data_preprocessor, name, None) for name in ("mean", "std"))
        # A method may have one mask for the whole batch: then that image alone is drawn.
        images = patch_mask.fill_invalid(images_of(self.batch["inputs"])[: len(patch_mask.mask)])
        return draw_masks(images, patch_mask, reconstruction, mean, std)


def unwrapped(runner: Runner) -> Any:
    """The model itself, out of its distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def model_with_masks(runner: Runner, hook: Hook) -> Any:
    """The model, for a hook that calls it between the steps; one in FSDP's shards is refused.

    None, and a line in the log, if it has no masks to look at: with ``model.masking=None`` on the
    command line, or where something stands in for the model.
    """
    name = type(hook).__name__
    if any(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules()):
        raise ValueError(
            f"{name} expected a model that is whole on every device, but FullyShardedDataParallel "
            f"keeps its weights in shards between the steps, when {name} looks into it; leave "
            "MaskingPicturesHook and MaskingMetersHook out of custom_hooks, such as custom_hooks="
            "[dict(type='amn_masking.RandomStateHook')]"
        )
    model = unwrapped(runner)
    if getattr(model, "masking", None) is not None:
        return model
    runner.logger.warning(f"{name} rests in this run: {type(model).__name__} has no masking=")
    return None


@contextmanager
def same_random_numbers(seed: int) -> Iterator[None]:
    """Within, the random numbers of ``seed``; after, those of before go on undisturbed."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
