"""What a masked patch rewards: its error, or its error beside the variance of its own pixels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from amn_masking.patches import image_means, patchify

Reward = Literal["error", "variance_normalised"]
REWARDS: tuple[str, ...] = get_args(Reward)


def patch_variance(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Variance of the pixels within each patch, averaged over the channels.

    Args:
        images: ``(B, C, H, W)``.
        grid: (rows, columns) of patches.

    Returns:
        ``(B, L)`` float32, >= 0, no gradient.
    """
    channels, height, width = images.shape[1:]
    size = (height // grid[0], width // grid[1])
    pixels = patchify(images.detach().float(), size).unflatten(2, (-1, channels))
    return pixels.var(2, correction=0).mean(2)


def reward_scale(
    images: Tensor, grid: tuple[int, int], valid: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """What the error is divided by to make it ``variance_normalised``: v_i + mean_j v_j.

    v_i is the mean squared error of the best constant prediction of patch i. Pure noise, whose
    error is v_i for ever, is then rewarded with at most 1, no more than any other patch of which
    nothing is known. The image's mean bounds the reward of flat patches, where v_i is 0.

    Args:
        images: ``(B, C, H, W)``.
        grid: (rows, columns) of patches.
        valid: ``(B, L)`` bool, the patches that the image's mean is over; None for all.
        eps: for images of one colour.

    Returns:
        ``(B, L)`` float32, > 0.
    """
    variance = patch_variance(images, grid)
    every = torch.ones_like(variance) if valid is None else valid
    return variance + image_means(variance, every) + eps
