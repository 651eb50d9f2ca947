"""Seen, predicted, left out: which of the masked patches are predicted.

A patch that is *left out* is neither encoded nor decoded nor scored, so a step gets cheaper. Chen
et al., "CrossMAE" (arXiv:2401.14391), predict a random part of the masked patches; here a strategy
may choose that part, and what is left out is then drawn uniformly from the others, so that what is
seen is a random sample of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from amn_masking.counts import check_enough_valid
from amn_masking.mask import PatchMask
from amn_masking.noise import hashed, uniform


def predict_some(
    patch_mask: PatchMask,
    num_predicted: int,
    generator: Generator | None = None,
    deterministic: bool = False,
) -> PatchMask:
    """Of each image's masked patches, some are predicted, drawn uniformly; the others left out.

    Args:
        patch_mask: with equal counts; what is masked stays so.
        num_predicted: P, at most the masked patches.
        generator: source of the choice.
        deterministic: whether it follows from the mask, as in ``eval()``, and is not drawn.

    Raises:
        ValueError: the images mask different numbers of patches, or fewer than P; the mask is one
            of tubes; or a learned one, whose network would be rewarded for patches that are not
            predicted.

    Example:
        >>> patch_mask = PatchMask.from_mask(torch.tensor([[1, 1, 1, 0]]))
        >>> predict_some(patch_mask, 2, deterministic=True).predicted
        tensor([[1., 0., 1., 0.]])
    """
    num_masked = count_equal(patch_mask)
    if patch_mask.learned is not None:
        raise ValueError(
            "prediction_ratio expected a learning strategy to choose what is predicted, but this "
            "mask is learned as a whole; set prediction_ratio on the strategy that learns, or end "
            "the forward of your own with self.leave_out(mask, generator)"
        )
    if num_predicted > num_masked:
        raise ValueError(
            f"prediction_ratio asks for {num_predicted} predicted patches in each image, but only "
            f"{num_masked} are masked; lower prediction_ratio, or raise mask_ratio"
        )
    if num_predicted == num_masked:
        return replace(patch_mask, num_predicted=num_masked)
    masked = patch_mask.mask > 0
    noise = noise_of(patch_mask, generator, deterministic)
    predicted = least(noise.masked_fill(~masked, 2.0), num_predicted)
    return PatchMask.in_order(
        masked, patch_mask.num_visible, patch_mask.grid, None, patch_mask.valid, predicted,
        num_predicted,
    )  # fmt: skip


def leave_out(
    chosen: PatchMask,
    num_masked: int,
    generator: Generator | None = None,
    deterministic: bool = False,
) -> PatchMask:
    """The masked patches of ``chosen`` are predicted; others, drawn uniformly, are left out.

    Args:
        chosen: with equal counts, P masked patches in each image.
        num_masked: at least P; ``num_masked - P`` of the valid others are masked and left out.
        generator, deterministic: as for :func:`predict_some`.

    Raises:
        ValueError: the images mask different numbers of patches, or more than ``num_masked``, or
            an image has too few valid patches; the mask is one of tubes.

    Example:
        >>> chosen = PatchMask.from_mask(torch.tensor([[1, 0, 0, 0]]))
        >>> patch_mask = leave_out(chosen, 3, deterministic=True)
        >>> patch_mask.mask, patch_mask.predicted
        (tensor([[1., 0., 1., 1.]]), tensor([[1., 0., 0., 0.]]))
    """
    num_predicted = count_equal(chosen)
    if num_masked < num_predicted:
        raise ValueError(
            f"the threshold chose {num_predicted} patches of each image to be predicted, but "
            f"mask_ratio masks {num_masked}; lower prediction_ratio, or raise mask_ratio"
        )
    if num_masked == num_predicted:
        return replace(chosen, num_predicted=num_predicted)
    predicted = chosen.mask > 0
    taken = predicted
    if chosen.valid is not None:
        check_enough_valid(chosen.valid, num_masked)
        taken = predicted | ~chosen.valid
    noise = noise_of(chosen, generator, deterministic)
    left_out = least(noise.masked_fill(taken, 2.0), num_masked - num_predicted)
    patch_mask = PatchMask.in_order(
        predicted | left_out, chosen.num_patches - num_masked, chosen.grid, None, chosen.valid,
        predicted, num_predicted,
    )  # fmt: skip
    return replace(patch_mask, learned=chosen.learned)


def count_equal(patch_mask: PatchMask) -> int:
    """Masked patches of each image.

    Raises:
        ValueError: they differ, or are tubes, which a draw over all slots would break.
    """
    if patch_mask.slots > 1:
        raise ValueError(
            "prediction_ratio leaves patches out one by one, but this mask is repeated in "
            f"{patch_mask.slots} time slots, and tubes would be left out in part; let the strategy "
            f"return the mask of one slot and wrap it: TubeMasking(strategy, "
            f"slots={patch_mask.slots})"
        )
    if patch_mask.visible_counts is not None:
        raise ValueError(
            "prediction_ratio expected images that mask the same number of patches each, but the "
            "counts of this mask differ; leave prediction_ratio out, or use "
            "threshold=dict(type='quantile')"
        )
    return patch_mask.num_patches - patch_mask.num_visible


def noise_of(patch_mask: PatchMask, generator: Generator | None, deterministic: bool) -> Tensor:
    """``(B, L)`` in [0, 1), uniform: drawn, or following from the mask."""
    mask = patch_mask.mask
    return hashed(mask) if deterministic else uniform(mask.shape, mask.device, generator)


def least(noise: Tensor, count: int) -> Tensor:
    """``(B, L)`` bool: the ``count`` patches of least noise in each image."""
    ids = noise.topk(count, largest=False, sorted=False).indices
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, ids, True)
