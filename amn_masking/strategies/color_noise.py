"""Colour-noise masking: band-passed noise, nothing learned."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from amn_masking.noise import normal
from amn_masking.strategies.ranked import RankedMasking
from amn_masking.strategies.ratios import Ratio

Color = Literal["red", "green", "blue", "purple"]
COLORS: tuple[str, ...] = get_args(Color)


class ColorNoiseMasking(RankedMasking):
    """Masks where noise of a chosen band of spatial frequencies is largest.

    Hinojosa et al., "ColorMAE" (arXiv:2407.13036). With g_s the Gaussian filter of width s patches
    and white noise::

        red     low-pass    g_high                  blobs
        green   band-pass   g_low - g_high          blobs of one size, evenly spaced
        blue    high-pass   1 - g_low               single patches, evenly spread
        purple  band-stop   1 - (g_low - g_high)    large areas with holes and dots

    There the noise is a file of 3072 filtered images to be downloaded, and all images of a batch
    are masked by one crop of it. Here it is made where the mask is, on the grid of the patches,
    anew for each image and step.

    Args:
        mask_ratio, patch_size, prediction_ratio: as in
            :class:`~amn_masking.strategies.MaskingStrategy`.
        color: ``'red'``, ``'green'``, ``'blue'`` or ``'purple'``.
        low: standard deviation of the narrow filter, in patches, > 0.
        high: that of the wide one, larger than ``low``.

    Raises:
        ValueError: an unknown colour or a value out of range.

    Example:
        >>> import torch
        >>> masking = ColorNoiseMasking(color="green", mask_ratio=0.5, patch_size=16)
        >>> masking(torch.rand(2, 3, 64, 64)).mask.sum(1)
        tensor([8., 8.])
    """

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        color: Color = "green",
        low: float = 0.75,
        high: float = 1.5,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__(mask_ratio, patch_size, prediction_ratio=prediction_ratio)
        if color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)}, got {color!r}")
        if not 0 < low < high:
            raise ValueError(
                f"low and high are widths of two filters, 0 < low < high, got {low} and {high}"
            )
        self.color = color
        self.low = low
        self.high = high

    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """The noise, at each patch."""
        grid = self.grid(images)
        # A filter by Fourier transform is periodic: on a larger field its edges do not meet.
        field = tuple(2 * side for side in grid)
        axes = tuple(range(1, len(grid) + 1))
        white = normal((images.shape[0], *field), images.device, generator)
        gain = self.response(field, images)
        noise = torch.fft.irfftn(torch.fft.rfftn(white, dim=axes) * gain, s=field, dim=axes)
        for axis, side in zip(axes, grid, strict=True):
            noise = noise.narrow(axis, 0, side)
        return noise.flatten(1)

    def response(self, field: tuple[int, ...], like: Tensor) -> Tensor:
        """``(h, w // 2 + 1)``, the filter's gain at each frequency of a field of h x w patches."""
        square = torch.fft.rfftfreq(field[-1], device=like.device).square()
        for axis, side in enumerate(field[-2::-1], 1):
            frequency = torch.fft.fftfreq(side, device=like.device).square()
            square = frequency.reshape(-1, *[1] * axis) + square
        narrow, wide = (
            torch.exp(-2 * (math.pi * width) ** 2 * square) for width in (self.low, self.high)
        )
        return {
            "red": wide,
            "green": narrow - wide,
            "blue": 1 - narrow,
            "purple": 1 - (narrow - wide),
        }[self.color]
