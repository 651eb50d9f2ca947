"""The masks' numbers reach mmengine's log without a price in every step."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from torch import Tensor

from amn_masking.adapters.mmpretrain.ranks import over_ranks

INTERVAL = 50  # steps, where the Runner has no LoggerHook


class NumbersHook(Hook):
    """Takes the numbers of a step out of what mmengine logs, and logs them when a line is due.

    mmengine reads each number back from the device in every step, which waits for it, and copies
    that number's whole history. Here they stay on the device until LoggerHook writes its line; then
    all of them are read at once: of the steps since the last line and of all ranks the mean, the
    least where a name ends in ``_min``, the largest in ``_max``. What is stock's (names with
    'loss') is left to mmengine.
    """

    priority = "HIGHEST"  # before mmengine's RuntimeInfoHook, which reads everything

    def __init__(self) -> None:
        self.names: list[str] = []
        self.steps: list[Tensor] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not isinstance(outputs, dict):
            return
        outputs.pop("loss_adversarial", None)  # a multiple of other numbers, for the sum alone
        names = [name for name in outputs if "loss" not in name]
        if names != self.names:
            self.names, self.steps = names, []
        if names:
            numbers = [torch.as_tensor(outputs.pop(name)).detach().float() for name in names]
            self.steps.append(torch.stack(numbers))
        if self.steps and self.line_is_due(runner, batch_idx):
            steps = dict(zip(names, torch.stack(self.steps).unbind(1), strict=True))
            self.steps = []
            runner.message_hub.update_scalars(
                {f"train/{name}": value for name, value in over_ranks(steps).items()}
            )

    def line_is_due(self, runner: Runner, batch_idx: int) -> bool:
        """Whether mmengine's LoggerHook may write a line after this step."""
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        return self.end_of_epoch(runner.train_dataloader, batch_idx) or any(
            self.every_n_inner_iters(batch_idx, interval) for interval in intervals or [INTERVAL]
        )
