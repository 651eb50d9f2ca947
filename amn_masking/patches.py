"""Images to patches and back, in the row-major order that masked autoencoders use."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def grid_size(height: int, width: int, patch_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of patches of an image.

    Args:
        height, width: of the image, in pixels.
        patch_size: height and width of a patch, in pixels.

    Raises:
        ValueError: patches of that size do not tile the image.

    Example:
        >>> grid_size(224, 160, (16, 16))
        (14, 10)
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

    Example:
        >>> import torch
        >>> patchify(torch.rand(2, 3, 64, 64), (16, 16)).shape
        torch.Size([2, 16, 768])
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

    Example:
        >>> import torch
        >>> images = torch.rand(2, 3, 64, 64)
        >>> torch.equal(unpatchify(patchify(images, (16, 16)), (16, 16), (4, 4)), images)
        True
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


def pool_to_patches(values: Tensor, grid: tuple[int, int], name: str = "a map") -> Tensor:
    """Mean over the pixels and channels of each patch: ``(B, C, H, W)`` to ``(B, L)``.

    Args:
        values: such as a score map, or the error of each pixel.
        grid: (rows, columns) of patches.
        name: what the values are, for the message.

    Raises:
        ValueError: the grid does not divide them.
    """
    height, width = values.shape[-2:]
    h, w = grid
    if height % h or width % w:
        raise ValueError(f"{name} of {height} x {width} does not split into {h} x {w} patches")
    pooled = F.avg_pool2d(values, (height // h, width // w))
    return (pooled.mean(1) if values.shape[1] > 1 else pooled).flatten(1)


def spread_to_pixels(values: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """Each patch's value at all of its pixels: ``(B, L)`` to ``(B, 1, height, width)``.

    Args:
        values: of any dtype.
        grid: (rows, columns) of patches.
        height, width: of the image, in pixels.

    Raises:
        ValueError: the grid does not divide that size.
    """
    h, w = grid
    if height % h or width % w:
        raise ValueError(
            f"an image of {height} x {width} pixels does not split into a grid of {h} x {w} patches"
        )
    values = values.reshape(-1, 1, h, w)
    return values.repeat_interleave(height // h, 2).repeat_interleave(width // w, 3)


def fill_invalid(images: Tensor, valid: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` images, or their ``(B, L, D)`` patches, with 0 in the patches that are not
    valid; all are if it is None.
    """
    if valid is None:
        return images
    if images.dim() == 3:
        return images.where(valid[:, :, None], 0.0)
    return images.where(spread_to_pixels(valid, grid, *images.shape[-2:]), 0.0)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """``(B, L, 1)`` mean and standard deviation of the pixels of ``(B, L, D)`` patches.

    The deviation is MAE's: of the unbiased variance plus 1e-6.
    """
    deviation = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return patches.mean(-1, keepdim=True), deviation


def normalise_patches(patches: Tensor) -> Tensor:
    """``(B, L, D)`` patches, each less its mean and over its deviation: MAE's ``norm_pix``."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(B, L)`` errors over all masked patches of the batch, a scalar.

    What the error is elsewhere does not matter, not a number included.

    Example:
        >>> import torch
        >>> masked_mean(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
        tensor(2.)
    """
    return error.where(mask > 0, 0.0).sum() / mask.sum()


def image_means(values: Tensor, weight: Tensor | None) -> Tensor:
    """``(B, 1)`` mean of each image's ``(B, L)`` values, under weights >= 0 if there are any.

    What a value of weight 0 is does not matter, not a number included. A mask, or the valid
    patches, are weights of 0 and 1.
    """
    if weight is None:
        return values.mean(1, keepdim=True)
    total = (values.where(weight > 0, 0.0) * weight).sum(1, keepdim=True)
    return total / weight.sum(1, keepdim=True)
