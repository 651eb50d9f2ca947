"""The places where a method of mmpretrain is opened for the duration of one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.logging import MessageHub
from torch import Tensor, nn

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask


@contextmanager
def overridden(module: nn.Module, name: str, function: Callable) -> Iterator[None]:
    """For the duration, a function of this one instance is replaced."""
    own = vars(module).get(name)
    setattr(module, name, function)
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
def seen_by_loss(loss_module: nn.Module, patch_mask: PatchMask) -> Iterator[list[Tensor]]:
    """For the duration, collects ``[pred, target]`` as the head's loss module gets them.

    A :class:`CombinedAdversarialLoss` is given the whole PatchMask in place of the plain mask.
    """
    seen: list[Tensor] = []

    def look(
        module: nn.Module, pred: Tensor, target: Tensor, mask: Tensor | None = None
    ) -> tuple[tuple, dict]:
        seen[:] = pred, target
        return (
            pred,
            target,
            patch_mask if isinstance(module, CombinedAdversarialLoss) else mask,
        ), {}

    handle = loss_module.register_forward_pre_hook(
        lambda module, args, kwargs: look(module, *args, **kwargs), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def training_progress() -> float:
    """Share of the current run's iterations that are done, in [0, 1]; 0 outside a Runner."""
    hub = MessageHub.get_current_instance()
    max_iters = hub.get_info("max_iters", 0)
    return min(1.0, hub.get_info("iter", 0) / max_iters) if max_iters else 0.0


# `_base_ = 'mmpretrain::...'` puts mmengine's `_scope_` mark on collate_fn=dict(type=...), and
# mmengine passes it on as an argument, which the stock functions do not take. A user without a
# config of their own cannot mend it, so these stand in. Module-level: workers may be spawned.
def default_collate_any_scope(data_batch: Any, _scope_: str | None = None) -> Any:
    """mmengine's ``default_collate``, whatever scope it was named in."""
    return default_collate(data_batch)


def pseudo_collate_any_scope(data_batch: Any, _scope_: str | None = None) -> Any:
    """mmengine's ``pseudo_collate``, whatever scope it was named in."""
    return pseudo_collate(data_batch)
