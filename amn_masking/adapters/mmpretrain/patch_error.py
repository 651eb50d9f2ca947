"""What the head's loss module is called with, and per-patch errors from it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmpretrain.models import losses
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.patches import pool_to_patches, spread_to_pixels

PIXEL_LOSSES = (losses.PixelReconstructionLoss, CombinedAdversarialLoss)
KNOWN_LOSSES = (*PIXEL_LOSSES, losses.CosineSimilarityLoss, losses.CrossEntropyLoss, losses.CAELoss)


@contextmanager
def seen_by_loss(loss_module: nn.Module, patch_mask: PatchMask) -> Iterator[list[tuple]]:
    """For the duration, collects the arguments of each call of the head's loss module.

    A :class:`CombinedAdversarialLoss` is given the whole PatchMask in place of the plain mask, and
    another loss nothing of the patches that are left out, see :func:`without_left_out`.
    """
    calls: list[tuple] = []

    def look(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        if isinstance(module, CombinedAdversarialLoss):
            calls.append(bound.args)
            return (*bound.args[:2], patch_mask), {}
        if patch_mask.num_left_out:
            calls.append(without_left_out(bound.args, patch_mask))
            return calls[-1], bound.kwargs
        calls.append(bound.args)
        return None

    with loss_module.register_forward_pre_hook(look, with_kwargs=True):
        yield calls


def without_left_out(call: tuple, patch_mask: PatchMask) -> tuple:
    """The arguments of a loss module's call, of which only the predicted patches are to count.

    Args:
        call: prediction and target of each masked patch, ``(number of them, D)``, image by image in
            the order of the patches, and, of CAE, latents ``(B, masked, D)``; or those of all
            patches, or of pixels, and their mask, ``(B, L)`` or ``(B, 1, H, W)``; or without one,
            for a mean over all tokens, ``(B, prefix + L, D)``.
        patch_mask: with patches that are left out.
    """
    pred, target, *rest = call
    predicted = patch_mask.predicted
    if pred.dim() == 2:
        rows = predicted[patch_mask.mask > 0] > 0
        latents = (x.flatten(0, 1)[rows].unflatten(0, (len(predicted), -1)) for x in rest)
        return pred[rows], target[rows], *latents
    if not rest or rest[0] is None:
        prefix = pred.shape[1] - patch_mask.num_patches
        mask = F.pad(1 - patch_mask.mask + predicted, (prefix, 0), value=1.0)
    elif rest[0].dim() == 2:
        mask = predicted.to(rest[0].dtype)
    else:
        mask = spread_to_pixels(predicted, patch_mask.grid, *rest[0].shape[2:]).to(rest[0].dtype)
    return pred, target, mask


def patch_error(
    loss_module: nn.Module,
    calls: Sequence[tuple],
    patch_mask: PatchMask,
    combined: CombinedAdversarialLoss,
) -> Tensor:
    """The un-reduced error of each patch, with the autoencoder's gradient.

    Args:
        loss_module: the head's, one of ``KNOWN_LOSSES``.
        calls: positional arguments of each of its calls; more than one (BEiT v2) are added up.
        patch_mask: the mask of those calls.
        combined: gives the criterion where the prediction is of pixels.

    Returns:
        ``(B, L)``. At patches that the method makes no prediction for, 0.
    """
    error = torch.stack(
        [on_patches(row_error(loss_module, combined, *call), patch_mask) for call in calls]
    ).sum(0)
    if patch_mask.num_left_out:
        error = error.masked_fill(patch_mask.mask > patch_mask.predicted, 0.0)
    return error


def row_error(
    loss_module: nn.Module,
    combined: CombinedAdversarialLoss,
    pred: Tensor,
    target: Tensor,
    *rest: Tensor,
) -> Tensor:
    """What the loss module averages, before it does: an error per token, per masked token or per
    pixel. For pixels it is ``combined``'s own criterion.
    """
    if isinstance(loss_module, PIXEL_LOSSES):
        return combined.error(pred, target)
    if isinstance(loss_module, losses.CosineSimilarityLoss):
        likeness = F.cosine_similarity(pred, target, dim=-1)
        return loss_module.shift_factor - loss_module.scale_factor * likeness
    if isinstance(loss_module, losses.CAELoss):
        latent_pred, latent_target = rest
        align = F.mse_loss(latent_pred, latent_target.detach(), reduction="none").mean(-1)
        return F.cross_entropy(pred, target, reduction="none") + loss_module.lambd * align.flatten()
    # Not called as a module: that is for the method alone, and whoever watches it.
    return loss_module.forward(pred, target, reduction_override="none")


def on_patches(error: Tensor, patch_mask: PatchMask) -> Tensor:
    """``(B, L)`` from ``(B, L)``, ``(B, 1 + L)`` with a class token in front, ``(B, C, H, W)``, or
    ``(number of predicted patches,)`` image by image in the order of the patches.
    """
    if error.dim() == 4:
        return pool_to_patches(error, patch_mask.grid, "an error")
    if error.dim() == 1:
        mask = patch_mask.predicted
        return torch.zeros_like(mask).masked_scatter(mask.bool(), error.to(mask.dtype))
    return error[:, -patch_mask.num_patches :]
