"""Rows of different lengths through an autoencoder whose blocks are called as ``block(x)``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

QUANTILE = "use threshold=dict(type='quantile')"
DIFFERENT = "the images of this batch keep different numbers of patches"


@contextmanager
def hidden_padding(model: Any, padding: Tensor | None) -> Iterator[None]:
    """For the duration, rows of different lengths come out of an autoencoder as each would alone.

    Attention in the encoder does not look at the padding, and the decoder gets mask tokens in its
    place: it finds masked patches there, ``ids_restore`` sends them there.

    Args:
        model: with ``blocks`` of ``forward(x, attn_mask=None)``, as timm's from version 1.0.16, for
            ``(B, P + N, D)`` tokens, of which the P prefix tokens in front are seen by all;
            ``decoder_embed``; and ``mask_token``.
        padding: ``(B, N)`` bool, True = padding; see :attr:`PatchMask.padding`. None for none.

    Raises:
        ValueError: a block takes no attention mask, or there is no decoder of that kind; or
            activation checkpointing is on. It runs the blocks again in backward, when the padding
            is no longer hidden, and the gradients would be wrong without a word.
    """
    if padding is None:
        yield
        return
    embed, token = getattr(model, "decoder_embed", None), getattr(model, "mask_token", None)
    if not isinstance(embed, nn.Module) or not isinstance(token, Tensor):
        raise ValueError(
            f"{DIFFERENT}, and the decoder gets its mask tokens in the place of padding, but "
            f"{type(model).__name__} has no decoder_embed and mask_token; {QUANTILE}"
        )
    recording, depth = torch.is_grad_enabled(), checkpoints_below()

    def with_mask(block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if torch.is_grad_enabled() != recording or checkpoints_below() != depth:
            raise ValueError(
                f"activation checkpointing is on, but {DIFFERENT}, which it would lose sight of in "
                f"backward; {QUANTILE}, or switch activation checkpointing off"
            )
        return args, {**kwargs, "attn_mask": attention_mask(args[0], padding)}

    def with_mask_tokens(module: nn.Module, args: tuple, tokens: Tensor) -> Tensor:
        return mask_tokens_in_padding(tokens, token, padding)

    with ExitStack() as stack:
        for block in model.blocks:
            if "attn_mask" not in inspect.signature(block.forward).parameters:
                raise ValueError(
                    f"{DIFFERENT}, and the padding is hidden by attn_mask, which "
                    f"{type(block).__module__}.{type(block).__name__} does not take (timm's blocks "
                    f"do from version 1.0.16); {QUANTILE}"
                )
            stack.enter_context(block.register_forward_pre_hook(with_mask, with_kwargs=True))
        stack.enter_context(embed.register_forward_hook(with_mask_tokens))
        yield


def attention_mask(tokens: Tensor, padding: Tensor) -> Tensor:
    """``(B, 1, 1, P + N)``: minus infinity at padding, 0 elsewhere.

    Added to the attention's logits. timm 1.0.16 adds a boolean mask too where attention is not
    fused, which would hide nothing.
    """
    prefix = tokens.shape[1] - padding.shape[1]
    if tokens.dim() != 3 or prefix < 0:
        raise ValueError(
            f"expected tokens of shape (B, P + {padding.shape[1]}, D) in the encoder's blocks, got "
            f"{tuple(tokens.shape)}, while {DIFFERENT}; {QUANTILE}"
        )
    hidden = nn.functional.pad(padding, (prefix, 0), value=False)[:, None, None, :]
    return torch.zeros_like(hidden, dtype=tokens.dtype).masked_fill(hidden, float("-inf"))


def mask_tokens_in_padding(tokens: Tensor, mask_token: Tensor, padding: Tensor) -> Tensor:
    """The decoder's ``(B, P + N, D)`` tokens, with mask tokens where the encoder had padding."""
    hidden = nn.functional.pad(padding, (tokens.shape[1] - padding.shape[1], 0), value=False)
    return torch.where(hidden[:, :, None], mask_token, tokens)


def checkpoints_below() -> int:
    """How many calls of torch's activation checkpointing the caller is inside of."""
    count, frame = 0, sys._getframe()
    while (below := frame.f_back) is not None:
        frame = below
        count += frame.f_globals.get("__name__") == "torch.utils.checkpoint"
    return count
