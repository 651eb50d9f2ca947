"""What a masked patch rewards: its error, or its error beside the variance of its own pixels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from amn_masking.patches import image_means

Reward = Literal["error", "variance_normalised"]
REWARDS: tuple[str, ...] = get_args(Reward)
# Least variance of an image: as a share of the batch's mean, and of the mean square of its pixels.
FLOOR, LEAST = 0.1, 0.001


def patch_variance(images: Tensor, grid: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
    """Variance of the pixels within each patch, averaged over the channels.

    Args:
        images: ``(B, C, H, W)``, or of one or three dimensions; what they are at patches that are
            not valid does not matter.
        grid: (rows, columns) of patches.
        valid: ``(B, L)`` bool; None for all.

    Returns:
        ``(B, L)`` float32, >= 0, no gradient; 0 at patches that are not valid.
    """
    pixels, inside = patched(images, grid)
    # In two passes: the mean of squares less the square of the mean would cancel.
    deviation = pixels - pixels.mean(inside, keepdim=True)
    variance = deviation.square_().mean([1, *inside]).flatten(1)
    return variance if valid is None else variance.where(valid, 0.0)


def patched(images: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, list[int]]:
    """The pixels in float32 with axes for the places within a patch, and which axes these are."""
    pixels = images.detach().float()
    inside = [2 * axis + 3 for axis in range(len(grid))]
    for axis, parts in zip(inside, grid, strict=True):
        pixels = pixels.unflatten(axis - 1, (parts, -1))
    return pixels, inside


def reward_scale(images: Tensor, grid: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
    """What the error is divided by to make it ``variance_normalised``: v_i + mean_j v_j.

    v_i is the mean squared error of the best constant prediction of patch i. Pure noise, whose
    error is v_i for ever, is then rewarded with at most 1, no more than any other patch of which
    nothing is known. The image's mean bounds the reward of flat patches, where v_i is 0. In an
    image that is flat as a whole, whose slightest error would otherwise outweigh all others, a
    tenth of the batch's mean takes its place; in a batch that is flat as a whole, a
    thousandth of the mean square of its pixels, or 1 if these are all 0. So pixels from 0 to 1 and
    from 0 to 255 give the same reward. Pixels far from 0, whose deviation within a patch is below
    3 % of their root mean square, are to be centred first.

    Args:
        images, grid, valid: as for :func:`patch_variance`.

    Returns:
        ``(B, L)`` float32, > 0.
    """
    variance = patch_variance(images, grid, valid)
    image = image_means(variance, valid)
    pixels, inside = patched(images, grid)
    power = image_means(pixels.square().mean([1, *inside]).flatten(1), valid).mean()
    least = torch.maximum(FLOOR * image.mean(), LEAST * power)
    return variance + torch.maximum(image, least.where(least > 0, 1.0))
