"""Rows of different lengths through transformer blocks that are called as ``block(x)``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

QUANTILE = "use threshold=dict(type='quantile')"
DIFFERENT = "the images of this batch keep different numbers of patches"


@contextmanager
def hidden_from_attention(blocks: Iterable[nn.Module], padding: Tensor) -> Iterator[None]:
    """For the duration, attention in the blocks does not look at the padding.

    Args:
        blocks: with ``forward(x, attn_mask=None)``, as timm's from version 1.0.16. They are given
            ``(B, P + N, D)`` tokens; the P prefix tokens in front are seen by all.
        padding: ``(B, N)`` bool, True = padding; see :attr:`PatchMask.padding`.

    Raises:
        ValueError: a block takes no attention mask; or activation checkpointing is on. It runs the
            blocks again in backward, when the padding is no longer hidden, and the gradients would
            be wrong without a word.
    """
    recording, depth = torch.is_grad_enabled(), checkpoints_below()

    def with_mask(block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if torch.is_grad_enabled() != recording or checkpoints_below() != depth:
            raise ValueError(
                f"activation checkpointing is on, but {DIFFERENT}, which it would lose sight of in "
                f"backward; {QUANTILE}, or switch activation checkpointing off"
            )
        return args, {**kwargs, "attn_mask": attention_mask(args[0], padding)}

    with ExitStack() as stack:
        for block in blocks:
            if "attn_mask" not in inspect.signature(block.forward).parameters:
                raise ValueError(
                    f"{DIFFERENT}, and the padding is hidden by attn_mask, which "
                    f"{type(block).__module__}.{type(block).__name__} does not take (timm's blocks "
                    f"do from version 1.0.16); {QUANTILE}"
                )
            stack.enter_context(block.register_forward_pre_hook(with_mask, with_kwargs=True))
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


@contextmanager
def mask_tokens_in_padding(
    decoder_embed: nn.Module, mask_token: Tensor, padding: Tensor
) -> Iterator[None]:
    """For the duration, the decoder gets mask tokens where the encoder had padding.

    It finds masked patches in those places: ``ids_restore`` sends them there. ``padding`` is as for
    :func:`hidden_from_attention`.
    """

    def replaced(module: nn.Module, args: tuple, tokens: Tensor) -> Tensor:
        hidden = nn.functional.pad(padding, (tokens.shape[1] - padding.shape[1], 0), value=False)
        return torch.where(hidden[:, :, None], mask_token, tokens)

    with decoder_embed.register_forward_hook(replaced):
        yield


def checkpoints_below() -> int:
    """How many calls of torch's activation checkpointing the caller is inside of."""
    count, frame = 0, sys._getframe()
    while (below := frame.f_back) is not None:
        frame = below
        count += frame.f_globals.get("__name__") == "torch.utils.checkpoint"
    return count
