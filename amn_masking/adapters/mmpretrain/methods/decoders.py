"""Decoders that run on the seen and the predicted patches only, for one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking.adapters.decoded import decoded_only
from amn_masking.adapters.mmpretrain.proof import asked
from amn_masking.mask import PatchMask


def why_not_fewer(neck: Any) -> str:
    """Why a decoder cannot leave patches out; empty if it can."""
    if getattr(neck, "decoder_blocks", None) and hasattr(neck, "decoder_pred"):
        return ""
    return (
        f"has a {type(neck).__name__}, which lacks the decoder_blocks and the decoder_pred of "
        "mmpretrain's MAEPretrainDecoder"
    )


@contextmanager
def fewer_tokens(neck: Any, patch_mask: PatchMask) -> Iterator[None]:
    """For the duration, a decoder's blocks run without the patches that are left out.

    What it predicts comes out as ``(B, L, D)``, 0 at those. Tokens in front of the patches, such as
    a class token, go through as they are.

    Args:
        neck: its ``decoder_blocks`` run on ``(B, prefix + L, D)``, then ``decoder_pred``.
        patch_mask: says what is left out; where nothing is, the neck is not touched.

    Raises:
        ValueError: activation checkpointing of the whole neck.
    """
    if patch_mask.num_left_out == 0:
        yield
        return
    check_not_run_again(neck)
    with decoded_only(neck.decoder_blocks[0], neck.decoder_pred, patch_mask):
        yield


@contextmanager
def fewer_prompts(neck: Any, patch_mask: PatchMask) -> Iterator[None]:
    """:func:`fewer_tokens` for MILAN's decoder, whose blocks take the masked tokens apart.

    What it predicts at a patch that is left out is of no meaning.
    """
    if patch_mask.num_left_out == 0:
        yield
        return
    check_not_run_again(neck)
    count, left_out = patch_mask.num_predicted, patch_mask.num_left_out
    batch, length = patch_mask.mask.shape
    # Attention does not depend on the order of what it looks at: as they come, seen and predicted.
    ids = torch.arange(length - left_out, device=patch_mask.mask.device).expand(batch, -1)

    def without(run: Any, masked: Tensor, visible: Tensor, ids_restore: Tensor) -> Tensor:
        return F.pad(run(masked[:, :count], visible, ids), (0, 0, 0, left_out))

    with ExitStack() as stack:
        for block in neck.decoder_blocks:
            stack.enter_context(asked(block, forward=partial(without, block.forward)))
        yield


def check_not_run_again(neck: nn.Module) -> None:
    """Raise ValueError where the whole neck runs again in backward, then on all patches."""
    if "forward" in vars(neck):
        raise ValueError(
            "activation checkpointing is on for the whole neck, but its decoder runs on fewer "
            "tokens with prediction_ratio, which it would lose sight of in backward; checkpoint "
            "its blocks, activation_checkpointing=['neck.decoder_blocks.0', ...]"
        )
