"""What the head's loss module is called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask


@contextmanager
def seen_by_loss(loss_module: nn.Module, patch_mask: PatchMask) -> Iterator[list[tuple]]:
    """For the duration, collects the arguments of each call of the head's loss module.

    A :class:`CombinedAdversarialLoss` is given the whole PatchMask in place of the plain mask.
    """
    calls: list[tuple] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        seen = inspect.signature(module.forward).bind(*args, **kwargs).args
        calls.append(seen)
        if isinstance(module, CombinedAdversarialLoss):
            return (*seen[:2], patch_mask), {}
        return None

    handle = loss_module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
