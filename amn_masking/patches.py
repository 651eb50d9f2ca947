"""Images to patches and back, in the row-major order that masked autoencoders use."""

from __future__ import annotations

from torch import Tensor


def grid_size(height: int, width: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Patches per column and per row of an image.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        patch_size: height and width of a patch, in pixels.

    Raises:
        ValueError: patches of that size do not tile the image.
    """
    h, w = patch_size
    if height < h or width < w or height % h or width % w:
        raise ValueError(
            f"an image of {height} x {width} pixels does not split into patches of {h} x {w}; "
            f"resize or crop it to a multiple, such as {max(height // h, 1) * h} x "
            f"{max(width // w, 1) * w}, or set patch_size to the encoder's"
        )
    return height // h, width // w


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to ``(B, L, p_h * p_w * C)``, channels last within a patch (as MAE).

    Raises:
        ValueError: patches of that size do not tile the image.
    """
    batch, channels, height, width = images.shape
    p_h, p_w = patch_size
    h, w = grid_size(height, width, patch_size)
    patches = images.reshape(batch, channels, h, p_h, w, p_w)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, h * w, p_h * p_w * channels)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`patchify`: ``(B, L, p_h * p_w * C)`` to ``(B, C, H, W)``.

    Raises:
        ValueError: the number of patches or their length does not fit.
    """
    batch, length, dim = patches.shape
    (p_h, p_w), (h, w) = patch_size, grid
    if length != h * w or dim % (p_h * p_w):
        raise ValueError(
            f"expected (B, {h * w}, {p_h} * {p_w} * channels) for a grid of {h} x {w}, got "
            f"{tuple(patches.shape)}"
        )
    images = patches.reshape(batch, h, w, p_h, p_w, dim // (p_h * p_w))
    return images.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, h * p_h, w * p_w)
