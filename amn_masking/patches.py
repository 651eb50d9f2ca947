"""Images, signals and volumes to patches and back, in the row-major order of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
NAMES = {
    1: "a signal of {} samples",
    2: "an image of {} pixels",
    3: "a clip or volume of {}",
}
SHAPES = {1: "(B, C, T)", 2: "(B, C, H, W)", 3: "(B, C, D, H, W)"}


def times(sides: Sequence[int]) -> str:
    """``14 x 10``, for messages."""
    return " x ".join(map(str, sides))


def called(size: Sequence[int]) -> str:
    """``an image of 224 x 160 pixels``, for messages."""
    return NAMES.get(len(size), "an input of {}").format(times(size))


def patch_sides(patch_size: int | Sequence[int]) -> tuple[int, ...]:
    """The sides of a patch, one for each dimension of the grid.

    Args:
        patch_size: one number for squares of an image; or one to three of them: ``(T,)`` samples
            of a signal, ``(H, W)`` pixels of an image, ``(D, H, W)`` voxels of a volume or, with
            D counting frames, of a clip.

    Raises:
        ValueError: something else.
    """
    sides = patch_size if isinstance(patch_size, Sequence) else (patch_size, patch_size)
    if len(sides) not in SHAPES or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            "patch_size must be one positive integer, for square patches of images, or a tuple of "
            f"one (signals), two (images) or three (clips, volumes), got {patch_size!r}"
        )
    return tuple(sides)


def grid_size(size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Patches along each dimension: (rows, columns) of an image.

    Args:
        size: of the image, in pixels: ``images.shape[2:]``.
        patch_size: sides of a patch, in pixels.

    Raises:
        ValueError: patches of that size do not tile the image, or are of other dimensions.

    Example:
        >>> grid_size((224, 160), (16, 16))
        (14, 10)
        >>> grid_size((16, 224, 224), (2, 16, 16))
        (8, 14, 14)
    """
    if len(size) != len(patch_size):
        raise ValueError(
            f"patches of {times(patch_size)} have {len(patch_size)} dimensions and cannot tile "
            f"{called(size)}; give patch_size one number for each of its {len(size)}"
        )
    if any(side < part or side % part for side, part in zip(size, patch_size, strict=True)):
        whole = [max(side // part, 1) * part for side, part in zip(size, patch_size, strict=True)]
        raise ValueError(
            f"{called(size)} does not split into patches of {times(patch_size)}; resize or crop "
            f"it to a multiple, such as {times(whole)}, or set patch_size to the encoder's"
        )
    return tuple(side // part for side, part in zip(size, patch_size, strict=True))


def patchify(images: Tensor, patch_size: Sequence[int]) -> Tensor:
    """``(B, C, H, W)`` to ``(B, L, p_h * p_w * C)``, channels last within a patch (as MAE).

    Args:
        images: or signals ``(B, C, T)``, or clips ``(B, C, D, H, W)``.
        patch_size: sides of a patch, one for each dimension.

    Raises:
        ValueError: patches of that size do not tile the image.

    Example:
        >>> import torch
        >>> patchify(torch.rand(2, 3, 64, 64), (16, 16)).shape
        torch.Size([2, 16, 768])
        >>> patchify(torch.rand(2, 3, 4, 64, 64), (2, 16, 16)).shape
        torch.Size([2, 32, 1536])
    """
    batch, channels, *size = images.shape
    grid = grid_size(size, patch_size)
    sides = [side for pair in zip(grid, patch_size, strict=True) for side in pair]
    places = range(2, images.dim() * 2 - 2, 2)  # of the grid; a patch's own axes follow each
    order = (0, *places, *(axis + 1 for axis in places), 1)
    patches = images.reshape(batch, channels, *sides).permute(order)
    return patches.reshape(batch, math.prod(grid), math.prod(patch_size) * channels)


def unpatchify(patches: Tensor, patch_size: Sequence[int], grid: Sequence[int]) -> Tensor:
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
    pixels, number = math.prod(patch_size), len(grid)
    if len(patch_size) != number or length != math.prod(grid) or dim % pixels:
        raise ValueError(
            f"expected (B, {math.prod(grid)}, {' * '.join(map(str, patch_size))} * channels) for "
            f"a grid of {times(grid)}, got {tuple(patches.shape)}"
        )
    images = patches.reshape(batch, *grid, *patch_size, dim // pixels)
    pairs = [axis for place in range(1, number + 1) for axis in (place, place + number)]
    size = [parts * side for parts, side in zip(grid, patch_size, strict=True)]
    return images.permute(0, -1, *pairs).reshape(batch, dim // pixels, *size)


def pool_to_patches(values: Tensor, grid: Sequence[int], name: str = "a map") -> Tensor:
    """Mean over the pixels and channels of each patch: ``(B, C, H, W)`` to ``(B, L)``.

    Args:
        values: such as a score map, or the error of each pixel; of one to three dimensions.
        grid: (rows, columns) of patches, one number for each dimension.
        name: what the values are, for the message.

    Raises:
        ValueError: the grid does not divide them.
    """
    size = values.shape[2:]
    if len(size) != len(grid) or any(side % parts for side, parts in zip(size, grid, strict=True)):
        raise ValueError(f"{name} of {times(size)} does not split into {times(grid)} patches")
    sides = [side // parts for side, parts in zip(size, grid, strict=True)]
    pooled: Tensor = AVG_POOL[len(grid)](values, sides)
    return (pooled.mean(1) if values.shape[1] > 1 else pooled).flatten(1)


def spread_to_pixels(values: Tensor, grid: Sequence[int], *size: int) -> Tensor:
    """Each patch's value at all of its pixels: ``(B, L)`` to ``(B, 1, *size)``.

    Args:
        values: of any dtype.
        grid: (rows, columns) of patches, one number for each dimension.
        size: of the image, in pixels: ``height, width``.

    Raises:
        ValueError: the grid does not divide that size.
    """
    if len(size) != len(grid) or any(side % parts for side, parts in zip(size, grid, strict=True)):
        raise ValueError(f"{called(size)} does not split into a grid of {times(grid)} patches")
    values = values.reshape(-1, 1, *grid)
    for axis, (side, parts) in enumerate(zip(size, grid, strict=True), 2):
        values = values.repeat_interleave(side // parts, axis)
    return values


def fill_invalid(images: Tensor, valid: Tensor | None, grid: Sequence[int]) -> Tensor:
    """``(B, C, H, W)`` images, or their ``(B, L, D)`` patches, with 0 in the patches that are not
    valid; all are if it is None. On a grid of one dimension three axes are a signal's, ``(B, C,
    T)``.
    """
    if valid is None:
        return images
    if images.dim() == 3 and len(grid) > 1:
        return images.where(valid[:, :, None], 0.0)
    return images.where(spread_to_pixels(valid, grid, *images.shape[2:]), 0.0)


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
    """Mean of ``(B, L)`` errors over all masked patches of the batch, a scalar; 0 without any.

    What the error is elsewhere does not matter, not a number included.

    Example:
        >>> import torch
        >>> masked_mean(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
        tensor(2.)
    """
    return error.where(mask > 0, 0.0).sum() / mask.sum().clamp_min(1)


def image_means(values: Tensor, weight: Tensor | None) -> Tensor:
    """``(B, 1)`` mean of each image's ``(B, L)`` values, under weights >= 0 if there are any.

    What a value of weight 0 is does not matter, not a number included. A mask, or the valid
    patches, are weights of 0 and 1. The mean of an image without a weight is 0.
    """
    if weight is None:
        return values.mean(1, keepdim=True)
    total = (values.where(weight > 0, 0.0) * weight).sum(1, keepdim=True)
    weights = weight.sum(1, keepdim=True)
    return total / weights.where(weights > 0, 1)
