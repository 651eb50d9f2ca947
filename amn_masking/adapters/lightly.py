"""lightly: a mask in the forms that its ``MaskedVisionTransformer`` takes, and back to patches.

    patch_mask = self.masking(images)
    idx_keep, idx_mask = token_mask(patch_mask, self.backbone, images)  # was random_token_mask
    ...
    error = patch_error(x_pred, target, idx_mask, patch_mask, self.backbone)
    loss = self.masking.total_loss(self.criterion(x_pred, target), error, patch_mask)

The reconstruction term and the errors are the training step's own. Of the strategy's
``loss=dict(...)`` they take ``lambda_adv`` and ``score_weighted``; ``criterion`` is an argument of
:func:`patch_error`, ``reconstruct`` and ``channel`` are up to ``self.criterion``.

For the TIMM and the Torchvision variant. Nothing of lightly is imported here.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask


def token_mask(patch_mask: PatchMask, backbone: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The mask as ``(idx_keep, idx_mask)``, in place of ``lightly.models.utils.random_token_mask``.

    Args:
        patch_mask: over the backbone's patches, ``(B, L)``, 1 = masked.
        backbone: a ``MaskedVisionTransformerTIMM`` or ``MaskedVisionTransformerTorchvision`` with P
            prefix tokens (class token, registers).
        images: ``(B, C, H, W)``, what is to be encoded.

    Returns:
        ``(B, P + N)`` int64, the prefix tokens, which are never masked, then the visible patches;
        and ``(B, M)`` int64, the M patches to predict: the L - N masked ones, or fewer where a
        ``prediction_ratio`` leaves some out, which are then in neither. Both count tokens, prefix
        included, and are not sorted.

    Raises:
        TypeError: the backbone is none of lightly's.
        ValueError: images mask different numbers of patches, or none any; the mask has a gate, or
            the grids of mask, images and backbone are not one.
    """
    prefix = check(patch_mask, backbone, images)
    if patch_mask.masks_nothing:
        raise ValueError(
            "idx_mask expected masked patches, of which the loss is a mean, but no image of this "
            "batch has one; leave the mask out, backbone.encode(images), and the loss with it"
        )
    if patch_mask.visible_counts is not None:
        raise ValueError(
            "idx_keep and idx_mask are rectangles, but the images of this batch mask different "
            "numbers of patches; use threshold=dict(type='quantile'), or, where masked tokens are "
            "replaced and not dropped, backbone.encode(images, mask=bool_mask(...))"
        )
    ids_keep = patch_mask.ids_keep
    front = torch.arange(prefix, device=ids_keep.device).expand(ids_keep.shape[0], -1)
    decoded = patch_mask.num_patches - patch_mask.num_left_out
    ids_predicted = patch_mask.ids_shuffle[:, patch_mask.num_visible : decoded]
    return torch.cat([front, ids_keep + prefix], dim=1), ids_predicted + prefix


def bool_mask(patch_mask: PatchMask, backbone: Any, images: Tensor) -> Tensor:
    """The mask as ``backbone.encode(images, mask=...)`` takes it, for methods such as SimMIM.

    There the mask token replaces what is masked, so the images may mask different numbers. What a
    ``prediction_ratio`` leaves out is replaced too, and not in the ``idx_mask`` of what to predict.

    Arguments as for :func:`token_mask`; the mask may have free counts.

    Returns:
        ``(B, P + L)`` bool, True = masked; never at the prefix tokens.

    Raises:
        TypeError: the backbone is none of lightly's.
        ValueError: the mask has a gate, or the grids of mask, images and backbone are not one.
    """
    return F.pad(patch_mask.mask.bool(), (check(patch_mask, backbone, images), 0), value=False)


def patch_error(
    pred: Tensor,
    target: Tensor,
    idx_mask: Tensor,
    patch_mask: PatchMask,
    backbone: Any,
    criterion: Literal["L1", "L2"] = "L2",
) -> Tensor:
    """``(B, L)`` error of each predicted patch in its place, 0 at all others.

    Args:
        pred: ``(B, M, D)`` prediction of the patches to predict.
        target: ``(B, M, D)``.
        idx_mask: ``(B, M)`` int64, the tokens that these are, in their order; as
            :func:`token_mask` gives them, prefix included, or in any other order.
        patch_mask: the mask that they were made under.
        backbone: as for :func:`token_mask`.
        criterion: ``'L2'``, MAE's, or ``'L1'``, SimMIM's.

    Raises:
        TypeError: the backbone is none of lightly's.
        ValueError: the shapes do not fit each other, or an unknown criterion.
    """
    if pred.shape != target.shape or pred.shape[:-1] != idx_mask.shape:
        raise ValueError(
            "expected pred and target of one shape (B, M, D) and idx_mask of (B, M), got "
            f"{tuple(pred.shape)}, {tuple(target.shape)} and {tuple(idx_mask.shape)}"
        )
    error = CombinedAdversarialLoss(criterion).error(pred, target)
    everywhere = error.new_zeros(patch_mask.mask.shape)
    return everywhere.scatter(1, idx_mask - prefix_tokens(backbone), error)


def prefix_tokens(backbone: Any) -> int:
    """How many tokens stand in front of the patches; refuses what is no backbone of lightly's."""
    if not hasattr(backbone, "sequence_length") or not hasattr(backbone, "vit"):
        raise TypeError(
            "expected lightly's MaskedVisionTransformerTIMM or MaskedVisionTransformerTorchvision, "
            f"got {type(backbone).__name__}"
        )
    return getattr(backbone.vit, "num_prefix_tokens", 1)  # torchvision's has the class token only


def check(patch_mask: PatchMask, backbone: Any, images: Tensor) -> int:
    """The number of prefix tokens, if the mask suits the backbone and the images."""
    prefix, vit, name = prefix_tokens(backbone), backbone.vit, type(backbone).__name__
    embed = getattr(vit, "patch_embed", None)
    if embed is None:  # torchvision's, whose positions lightly interpolates
        size, own_grid = (vit.patch_size, vit.patch_size), None
    else:
        size = tuple(embed.patch_size)
        own_grid = embed.grid_size if embed.strict_img_size else None
    patch_mask.check_grid(images, size, name, own_grid)
    if own_grid is None and patch_mask.grid[0] != patch_mask.grid[1]:
        raise ValueError(
            f"{name} takes square images where their size may change, got {tuple(images.shape)}, "
            f"a grid of {patch_mask.grid[0]} x {patch_mask.grid[1]}; crop them to squares"
        )
    if patch_mask.gate:
        raise ValueError(
            "lightly takes its mask as indices or as bool, through which no gradient flows; leave "
            "out gate=True"
        )
    return prefix
