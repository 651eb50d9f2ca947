"""What a mask does to tokens: the methods of ``PatchMask`` that encoders and decoders call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.checks import check_tokens

if TYPE_CHECKING:
    from amn_masking.mask import PatchMask


def gather_visible(patch_mask: PatchMask, tokens: Tensor) -> Tensor:
    """Keep the visible tokens.

    Args:
        tokens: ``(B, L, D)``, without prefix tokens.

    Returns:
        ``(B, N, D)``. Padding rows are 0. With ``gate`` the tokens are multiplied by
        1 - surrogate: exactly 1 in value.

    Raises:
        ValueError: the tokens are not one per patch of this mask.
    """
    check_tokens(patch_mask, tokens, patch_mask.num_patches, "L")
    ids = patch_mask.ids_keep
    visible = tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))
    if patch_mask.learned is not None and patch_mask.gate:
        shown = 1 - patch_mask.learned.surrogate.gather(1, ids)
        visible = visible * shown[:, :, None].to(visible.dtype)
    if (padding := patch_mask.padding) is not None:
        visible = visible.masked_fill(padding[:, :, None], 0)
    return visible


def scatter(patch_mask: PatchMask, visible: Tensor, mask_token: Tensor) -> Tensor:
    """Put visible tokens back in place and a mask token everywhere else.

    Args:
        visible: ``(B, N, D)``, as ``gather_visible`` orders them.
        mask_token: ``(D,)`` or any shape that broadcasts to ``(B, L, D)``.

    Returns:
        ``(B, L, D)``.

    Raises:
        ValueError: the tokens are not one per visible patch of this mask.
    """
    check_tokens(patch_mask, visible, patch_mask.num_visible, "N")
    batch, dim = visible.shape[0], visible.shape[2]
    filler = mask_token.to(visible.dtype)
    if (padding := patch_mask.padding) is not None:
        visible = torch.where(padding[:, :, None], filler, visible)
    rest = filler.expand(batch, patch_mask.num_patches - patch_mask.num_visible, dim)
    tokens = torch.cat([visible, rest], dim=1)
    return tokens.gather(1, patch_mask.ids_restore[:, :, None].expand(-1, -1, dim))


def gather_decoded(patch_mask: PatchMask, tokens: Tensor) -> Tensor:
    """Keep the tokens that a decoder needs: the visible ones and the predicted ones.

    Call it behind ``scatter`` and the positions, and ``scatter_decoded`` behind the decoder. Where
    nothing is left out both return what they were given.

    Args:
        tokens: ``(B, L, D)``, without prefix tokens.

    Returns:
        ``(B, N + P, D)``, the visible ones first.

    Raises:
        ValueError: the tokens are not one per patch of this mask.
    """
    check_tokens(patch_mask, tokens, patch_mask.num_patches, "L")
    if patch_mask.num_left_out == 0:
        return tokens
    ids = patch_mask.ids_shuffle[:, : patch_mask.num_patches - patch_mask.num_left_out]
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


def scatter_decoded(patch_mask: PatchMask, decoded: Tensor) -> Tensor:
    """Put a decoder's output back in place, and 0 where a patch was left out.

    Args:
        decoded: ``(B, N + P, D)``, as ``gather_decoded`` orders them.

    Returns:
        ``(B, L, D)``.

    Raises:
        ValueError: the tokens are not one per visible and predicted patch of this mask.
    """
    check_tokens(patch_mask, decoded, patch_mask.num_patches - patch_mask.num_left_out, "N + P")
    if patch_mask.num_left_out == 0:
        return decoded
    tokens = F.pad(decoded, (0, 0, 0, patch_mask.num_left_out))
    return tokens.gather(1, patch_mask.ids_restore[:, :, None].expand(-1, -1, tokens.shape[2]))
