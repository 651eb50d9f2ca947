"""Rows of different lengths through a MAEViT of mmpretrain and its decoder."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.adapters.mmpretrain.proof import asked


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

    embed = neck.decoder_embed.forward

    def with_mask_tokens(latent: Tensor) -> Tensor:
        tokens = embed(latent)
        return torch.where(padding[:, :, None], neck.mask_token.to(tokens.dtype), tokens)

    with ExitStack() as stack:
        for layer in backbone.layers:
            attention = functools.partial(
                layer.attn.scaled_dot_product_attention, attn_mask=visible
            )
            stack.enter_context(asked(layer.attn, scaled_dot_product_attention=attention))
        stack.enter_context(asked(neck.decoder_embed, forward=with_mask_tokens))
        yield
