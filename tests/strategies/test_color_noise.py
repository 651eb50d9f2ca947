"""Masks of filtered noise."""

from __future__ import annotations

import math

import pytest
import torch

from amn_masking.strategies import (
    ColorNoiseMasking,
)
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, images_of, patch_of


def spectrum(strategy, grid=(32, 32), batch=400):
    """Mean power of the noise at each radial frequency, in cycles per patch."""
    field = strategy.priorities(images_of(grid, batch), 1, generator(0)).reshape(batch, *grid)
    field = field - field.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(field).abs().square().mean(0)
    rows, columns = torch.fft.fftfreq(grid[0]), torch.fft.fftfreq(grid[1])
    radius = (rows[:, None] ** 2 + columns[None, :] ** 2).sqrt()
    return [power[(radius >= low) & (radius < low + 0.1)].mean().item() for low in (0.0, 0.2, 0.4)]


def test_each_colour_has_its_band():
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "red"))
    assert low > 5 * middle > 25 * high
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "blue"))
    assert 5 * low < middle < high
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "green"))
    assert middle > 2 * low
    assert middle > 2 * high
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "purple"))
    assert middle < 0.7 * low
    assert middle < 0.7 * high


def test_the_filter_is_a_difference_of_gaussians():
    """Beside a convolution by hand, in the middle of a field where no edge is near."""
    strategy = ColorNoiseMasking(0.5, SIDE, "green", low=1.5, high=3.0)
    images = images_of((24, 24), 2)
    noise = strategy.priorities(images, 1, generator(4)).reshape(2, 24, 24)
    white = torch.randn(2, 48, 48, generator=generator(4))
    offsets = torch.arange(-12, 13).float()

    def blurred(width):
        # What a Gaussian is in frequencies, it is in space, sampled.
        kernel = torch.exp(-(offsets**2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
        plane = torch.nn.functional.conv2d(white[:, None], (kernel[:, None] * kernel)[None, None])
        return plane[:, 0]  # starts at (12, 12)

    expected = blurred(1.5) - blurred(3.0)
    assert torch.allclose(noise[:, 12:, 12:], expected[:, :12, :12], atol=1e-3)


@pytest.mark.parametrize("grid", [(30,), (4, 6, 5)])
def test_on_other_grids_it_is_the_same_filter_of_every_axis(grid):
    """Beside the full transform, with the gain of each frequency by its distance from 0."""
    strategy = ColorNoiseMasking(0.5, patch_of(grid), "green")
    noise = strategy.priorities(images_of(grid, 2), 1, generator(4)).reshape(2, *grid)
    field = [2 * parts for parts in grid]
    white = torch.randn(2, *field, generator=generator(4))
    axes = torch.meshgrid(*(torch.fft.fftfreq(parts) for parts in field), indexing="ij")
    square = torch.stack(axes).square().sum(0)
    narrow, wide = (torch.exp(-2 * (math.pi * width) ** 2 * square) for width in (0.75, 1.5))
    places = tuple(range(1, len(grid) + 1))
    expected = torch.fft.ifftn(torch.fft.fftn(white, dim=places) * (narrow - wide), dim=places).real
    corner = (slice(None), *(slice(parts) for parts in grid))
    torch.testing.assert_close(noise, expected[corner], rtol=1e-4, atol=1e-5)
