"""What an adversary is paid for: the error itself, or the error beside the patch's own variance."""

from __future__ import annotations

from torch import Tensor

REWARDS = ("error", "variance_normalised")


def patch_variance(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Variance of the pixels within each patch, averaged over the channels.

    Args:
        images: ``(B, C, H, W)``.
        grid: patches per column and per row.

    Returns:
        ``(B, L)`` float32, >= 0, no gradient.
    """
    h, w = grid
    batch, channels = images.shape[:2]
    height, width = images.shape[-2] // h, images.shape[-1] // w
    pixels = images.detach().float().reshape(batch, channels, h, height, w, width)
    return pixels.var((3, 5), correction=0).mean(1).flatten(1)


def reward_scale(images: Tensor, grid: tuple[int, int], eps: float = 1e-6) -> Tensor:
    """What the error is divided by to make it ``variance_normalised``: v_i + mean_j v_j.

    v_i is the mean squared error of the best constant prediction of patch i. Pure noise, whose
    error is v_i for ever, then pays at most 1 and no more than any other patch of which nothing is
    known. The image's mean keeps flat patches, where v_i is 0, from paying without bound.

    Args:
        images: ``(B, C, H, W)``.
        grid: patches per column and per row.
        eps: for images of one colour.

    Returns:
        ``(B, L)`` float32, > 0.
    """
    variance = patch_variance(images, grid)
    return variance + variance.mean(1, keepdim=True) + eps


__all__ = ["REWARDS", "patch_variance", "reward_scale"]
