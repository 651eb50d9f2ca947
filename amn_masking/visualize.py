"""Pictures of masks. Needs matplotlib, the extra ``viz``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.checks import check_tensor
from amn_masking.mask import PatchMask
from amn_masking.patches import SHAPES, spread_to_pixels

PANEL_INCHES = 1.7
MOST_FRAMES = 8  # of a strip


def draw_masks(
    images: Tensor,
    patch_mask: PatchMask,
    reconstruction: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    dpi: int = 100,
) -> Any:
    """A row per image: input | score map | masked input | reconstruction.

    Of a clip or volume these are strips, one below the other: the first frame of up to eight of its
    slots, side by side.

    The score map's colours run from each image's least to its largest score, which are written
    on it: an image's own order is what decides its mask. Masked patches are grey; those that a
    ``prediction_ratio`` leaves out are chequered, in the reconstruction too.

    Args:
        images: ``(B, C, H, W)``, or clips ``(B, C, D, H, W)``, as the encoder saw them. Of more
            than three channels the first three are drawn, as red, green and blue; of two their
            mean.
        patch_mask: their mask. Without a score map that column is left out.
        reconstruction: predictions of the images' shape; shown at predicted patches, the input at
            visible ones.
        mean: subtracted from the pixels in [0, 255], or [0, 1], before the encoder; None if nothing
            was. Images of other values are then stretched from their least to their largest.
        std: divided by, after the mean.
        dpi: dots per inch of the picture.

    Returns:
        ``(height, width, 3)`` uint8 RGB numpy array.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: images or reconstruction are no tensors.
        ValueError: the mask is not one of these images, or they are signals.

    Example:
        >>> import torch
        >>> from amn_masking import AdversarialMasking
        >>> images = torch.rand(2, 3, 64, 64)
        >>> draw_masks(images, AdversarialMasking(0.25)(images)).dtype
        dtype('uint8')
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures of masks need matplotlib; install it with pip install matplotlib"
        ) from error

    check_tensor(images, "images")
    if reconstruction is not None:
        check_tensor(reconstruction, "reconstruction")
    dimensions = len(patch_mask.grid)
    if dimensions == 1:
        raise ValueError(
            "draw_masks draws images, clips and volumes, got a mask of signals; plot the signal "
            "beside patch_mask.pixel_mask(samples)"
        )
    if images.dim() != dimensions + 2 or len(images) != len(patch_mask.mask):
        raise ValueError(
            f"draw_masks expected images of {SHAPES[dimensions]} with B={len(patch_mask.mask)}, "
            f"one per mask, got {tuple(images.shape)}"
        )
    columns = panels(images, patch_mask, reconstruction, mean, std)
    clips = dimensions == 3
    if clips:
        columns = [(title, strip(pictures, patch_mask.grid[0])) for title, pictures in columns]
    rows, (tall, wide) = len(images), columns[0][1].shape[-2:]
    across, down = (1, rows * len(columns)) if clips else (len(columns), rows)
    panel = PANEL_INCHES * (wide / images.shape[-1])  # a frame of a strip is as wide as an image
    header = 0.0 if clips else 0.3 + 0.15 * max(title.count("\n") for title, _ in columns)
    width, height = across * panel, down * panel * tall / wide + header
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).reshape(rows, len(columns))
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - header / height, 0.03, 0.03)
    box = dict(color="white", fontsize=7)
    box["bbox"] = dict(facecolor="black", alpha=0.6, pad=1.5, linewidth=0)
    for column, (title, pictures) in enumerate(columns):
        if not clips:
            axes[0][column].set_title(title, fontsize=10, pad=4)
        for ax, picture in zip(axes[:, column], pictures, strict=True):
            ax.set_axis_off()
            if clips:
                ax.text(0.005, 0.95, title, transform=ax.transAxes, va="top", **box)
            if picture.dim() == 2:
                low, high = float(picture.min()), float(picture.max())
                ax.imshow(picture.numpy(), cmap="inferno", interpolation="nearest")
                ax.text(0.03, 0.03, f"{low:.2f} to {high:.2f}", transform=ax.transAxes, **box)
            else:
                ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    canvas.draw()
    import numpy as np

    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def panels(
    images: Tensor,
    patch_mask: PatchMask,
    reconstruction: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> list[tuple[str, Tensor]]:
    """What :func:`draw_masks` draws of each image: titles, and ``(B, 3, ...)`` pictures in [0, 1]
    or ``(B, ...)`` scores, on the CPU.
    """
    size, grid = images.shape[2:], patch_mask.grid
    pixels = undo(images, mean, std)
    black, white = pixel_range(pixels)
    shown = to_pixels(pixels, black, white)
    hidden = patch_mask.pixel_mask(*size).bool().cpu()
    columns: list[tuple[str, Tensor]] = [("input", shown)]
    if patch_mask.learned is not None:
        scores = F.interpolate(
            patch_mask.learned.score_map.float().cpu(), size=tuple(size), mode="nearest"
        )
        columns.append(("score map", scores[:, 0]))
    left_out = hidden & ~spread_to_pixels(patch_mask.predicted, grid, *size).bool().cpu()
    title = "grey: predicted\nchequered: left out" if patch_mask.num_left_out else "masked input"
    chequered = chequers(size[-2:], grid[-2:])
    masked_input = torch.where(hidden, torch.full_like(shown, 0.5), shown)
    columns.append((title, torch.where(left_out, chequered, masked_input)))
    if reconstruction is not None:
        predicted = torch.where(
            hidden, to_pixels(undo(reconstruction, mean, std), black, white), shown
        )
        columns.append(("reconstruction", torch.where(left_out, chequered, predicted)))
    return columns


def strip(pictures: Tensor, slots: int) -> Tensor:
    """``(..., D, H, W)`` to ``(..., H, n * W)``: the first frame of up to eight of the slots."""
    depth, count = pictures.shape[-3], min(slots, MOST_FRAMES)
    first = [index * slots // count * (depth // slots) for index in range(count)]
    return pictures[..., first, :, :].transpose(-3, -2).flatten(-2)


def chequers(size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """``(height, width)`` in [0, 1]: light chequers, four to the side of a patch."""
    rows, columns = (
        torch.arange(side) * parts * 4 // side for side, parts in zip(size, grid, strict=True)
    )
    return 0.85 + 0.15 * ((rows[:, None] + columns) % 2)


def undo(images: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """The images before they were normalised, float32."""
    images = images.detach().float()
    if mean is None or std is None:
        return images
    # One number for each channel, whatever axes of length 1 stand around it.
    mean, std = (
        x if x.numel() == 1 else x.reshape(-1, *[1] * (images.dim() - 2)) for x in (mean, std)
    )
    return images * std + mean


def pixel_range(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The values that are drawn black and white: 0 and 255, 0 and 1, or, for other values, each
    image's own least and largest.
    """
    axes = tuple(range(1, pixels.dim()))
    least, most = pixels.amin(axes, keepdim=True), pixels.amax(axes, keepdim=True)
    tolerance = 0.02 * (most.max() - least.min())
    for white in (1.0, 255.0):
        if least.min() >= -tolerance and most.max() <= white + tolerance:
            return torch.zeros_like(least), torch.full_like(most, white)
    return least, most


def to_pixels(pixels: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """``(B, 3, ...)`` in [0, 1] on the CPU, from ``(B, C, ...)`` in [black, white]."""
    pixels = ((pixels - black) / (white - black).clamp_min(1e-12)).nan_to_num().clamp(0, 1).cpu()
    if pixels.shape[1] < 3:
        pixels = pixels.mean(1, keepdim=True).repeat_interleave(3, 1)
    return pixels[:, :3]
