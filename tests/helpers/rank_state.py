"""A hook that lets every rank write down its own state; the configs of tests import it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RankStateHook(Hook):
    """Writes ``rank<N>.pt``: weights and buffers, what was logged, what this rank has seen."""

    priority = "VERY_LOW"

    def before_train(self, runner):
        self.images, self.masks = [], []
        self.handle = runner.model.module.masking.register_forward_hook(self._see)

    def _see(self, masking, args, patch_mask):
        if torch.is_grad_enabled():  # the steps, and neither measurements nor pictures
            self.images.append(args[0].clone())
            self.masks.append(patch_mask.mask.clone())

    def after_train(self, runner):
        self.handle.remove()
        state = {
            "wrapper": type(runner.model).__name__,
            "weights": deepcopy(runner.model.module.state_dict()),
            "logged": {
                name: torch.tensor(buffer.data[0])
                for name, buffer in runner.message_hub.log_scalars.items()
            },
            "images": torch.stack(self.images),
            "masks": torch.stack(self.masks),
            # Where every patch scores the same, nothing but the noise decides.
            "drawn": runner.model.module.masking(torch.zeros_like(self.images[0])).mask,
        }
        torch.save(state, Path(runner.work_dir) / f"rank{get_rank()}.pt")
