"""The places where a method of mmpretrain is opened for the duration of one call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.logging import MessageHub
from torch import Tensor, nn

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask


@contextmanager
def overridden(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """For the duration, a function or a number of this one instance is replaced."""
    own = vars(module).get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(module, name)
        else:
            setattr(module, name, own)


@contextmanager
def hidden_padding(backbone: Any, neck: Any, padding: Tensor) -> Iterator[None]:
    """For the duration, a MAEViT and its decoder take rows of different lengths.

    Attention in the encoder does not look at the padding. What the encoder makes of it is replaced
    by the decoder's mask token, because the decoder finds the masked patches in those places.

    Args:
        backbone: with ``layers[i].attn.scaled_dot_product_attention``, a class token in front.
        neck: with ``decoder_embed`` and ``mask_token``.
        padding: ``(B, N)`` bool, True = padding.

    Raises:
        ValueError: activation checkpointing is on. It runs the layers again during backward, when
            the padding is no longer hidden, and the gradients would be wrong without a word.
    """
    if any("forward" in vars(module) for module in backbone.modules()):
        raise ValueError(
            "activation checkpointing is on for the backbone, but the images of this batch keep "
            "different numbers of patches, which it would lose sight of in backward; use "
            "threshold=dict(type='quantile'), or leave activation_checkpointing out"
        )
    padding = nn.functional.pad(padding, (1, 0), value=False)  # the class token
    visible = ~padding[:, None, None, :]

    def with_mask_tokens(module: nn.Module, args: tuple, tokens: Tensor) -> Tensor:
        return torch.where(padding[:, :, None], neck.mask_token.to(tokens.dtype), tokens)

    with ExitStack() as stack:
        for layer in backbone.layers:
            attention = functools.partial(
                layer.attn.scaled_dot_product_attention, attn_mask=visible
            )
            stack.enter_context(overridden(layer.attn, "scaled_dot_product_attention", attention))
        handle = neck.decoder_embed.register_forward_hook(with_mask_tokens)
        stack.callback(handle.remove)
        yield


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


class Progress(NamedTuple):
    """How far a Runner is: what schedules count by."""

    share: float
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
        share = min(1.0, iteration / max_iters)
        max_epochs = hub.get_info("max_epochs", 1)
        # An IterBasedTrainLoop says that it has one epoch, "for compatibility".
        if max_epochs == 1 and counts_iterations(hub.get_info("cfg", "")):
            return Progress(share, iteration, None)
        return Progress(share, iteration, iteration * max_epochs / max_iters)


# `_base_ = 'mmpretrain::...'` puts mmengine's `_scope_` mark on collate_fn=dict(type=...), and
# mmengine passes it on as an argument, which the stock functions do not take. A user without a
# config of their own cannot mend it, so these stand in. Module-level: workers may be spawned.
def default_collate_any_scope(data_batch: Any, _scope_: str | None = None) -> Any:
    """mmengine's ``default_collate``, whatever scope it was named in."""
    return default_collate(data_batch)


def pseudo_collate_any_scope(data_batch: Any, _scope_: str | None = None) -> Any:
    """mmengine's ``pseudo_collate``, whatever scope it was named in."""
    return pseudo_collate(data_batch)
