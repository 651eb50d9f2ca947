"""Schedules move with the Runner that trains the model."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from amn_masking.adapters.mmpretrain.runner.pictures_hook import unwrapped


class SchedulesHook(Hook):
    """Tells the masking strategy before every step how far the run is.

    The Runner's own counts are asked, so that after a resume with another batch size or number of
    ranks the epoch is right. A model that is used by hand is not moved.
    """

    priority = "HIGH"  # before the meters, after what a user sets at the start of an epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        unwrapped(runner).masking.set_progress(*progress(runner, batch_idx))


def progress(runner: Runner, batch_idx: int) -> tuple[float, int, float | None]:
    """Share of the training that is done, iterations, and epochs in fractions.

    The epochs are None where the loop has none. Where it has, the share is that of the epochs.
    """
    loop, length = runner.train_loop, len(runner.train_dataloader)
    # A loop by iterations says that it has one epoch, "for compatibility".
    one_long = loop.max_epochs == 1 and loop.max_iters != length
    if isinstance(loop, IterBasedTrainLoop) or one_long:
        return min(1.0, runner.iter / loop.max_iters), runner.iter, None
    epoch = runner.epoch + min(batch_idx, length) / length
    return min(1.0, epoch / loop.max_epochs), runner.iter, epoch
