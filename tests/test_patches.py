"""Patches and the grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking.patches import (
    fill_invalid,
    grid_size,
    normalise_patches,
    patch_sides,
    patchify,
    pool_to_patches,
    spread_to_pixels,
    unpatchify,
)


@st.composite
def tilings(draw):
    """Sides of a patch and a grid, of one to three dimensions."""
    dimensions = draw(st.integers(1, 3))
    return tuple(draw(st.tuples(*[st.integers(1, 4)] * dimensions)) for _ in range(2))


@given(tilings())
def test_patchify_matches_the_obvious_loop_and_inverts(case):
    sides, grid = case
    images = torch.randn(2, 3, *(side * parts for side, parts in zip(*case, strict=True)))
    patches = patchify(images, sides)
    for index, place in enumerate(itertools.product(*map(range, grid))):
        part = images
        for axis, (start, side) in enumerate(zip(place, sides, strict=True), 2):
            part = part.narrow(axis, start * side, side)
        assert torch.equal(patches[:, index], part.movedim(1, -1).flatten(1))
    assert torch.equal(unpatchify(patches, sides, grid), images)


@given(tilings())
def test_what_is_spread_to_pixels_is_pooled_back(case):
    sides, grid = case
    size = tuple(side * parts for side, parts in zip(*case, strict=True))
    values = torch.randn(2, math.prod(grid))
    pixels = spread_to_pixels(values, grid, *size)
    assert pixels.shape == (2, 1, *size)
    assert torch.equal(patchify(pixels, sides), values[:, :, None].expand(-1, -1, math.prod(sides)))
    torch.testing.assert_close(pool_to_patches(pixels, grid), values)
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(pool_to_patches(images, grid), patchify(images, sides).mean(-1))


@given(tilings())
def test_what_is_not_valid_is_filled(case):
    sides, grid = case
    size = tuple(side * parts for side, parts in zip(*case, strict=True))
    valid, images = torch.rand(2, math.prod(grid)) > 0.5, torch.randn(2, 3, *size)
    patches = patchify(images, sides)
    expected = torch.where(valid[:, :, None], patches, 0.0)
    assert torch.equal(patchify(fill_invalid(images, valid, grid), sides), expected)
    if len(grid) > 1:  # three axes are a signal's on a grid of one
        assert torch.equal(fill_invalid(patches, valid, grid), expected)


@pytest.mark.parametrize("size", [(33, 32), (32, 40), (8, 32), (16, 8)])
def test_a_grid_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels does not split.*16 x 16"):
        grid_size(size, (16, 16))


@pytest.mark.parametrize(
    ("size", "sides", "message"),
    [
        ((100,), (16,), "a signal of 100 samples does not split into patches of 16.* such as 96"),
        ((7, 32, 32), (2, 16, 16), "a clip or volume of 7 x 32 x 32 does not.* such as 6 x 32 x"),
        ((8, 32, 32), (16, 16), "patches of 16 x 16 have 2 dimensions.* each of its 3"),
        ((32, 32), (2, 16, 16), "3 dimensions and cannot tile an image of 32 x 32.* its 2"),
    ],
)
def test_patches_that_cannot_tile_are_refused_in_every_dimension(size, sides, message):
    with pytest.raises(ValueError, match=message):
        grid_size(size, sides)
    with pytest.raises(ValueError, match=message):
        patchify(torch.zeros(1, 1, *size), sides)


@pytest.mark.parametrize("wrong", [0, 16.0, (), (16, 0), (1, 2, 3, 4), "16", (16.0,)])
def test_a_patch_size_of_another_kind_is_refused(wrong):
    with pytest.raises(ValueError, match=r"one positive integer.* a tuple of one \(signals\), two"):
        patch_sides(wrong)


def test_one_number_is_a_square_and_a_tuple_is_as_it_is():
    assert patch_sides(16) == (16, 16)
    for sides in ((16,), (16, 8), (2, 16, 16)):
        assert patch_sides(sides) == patch_sides(list(sides)) == sides


def test_unpatchify_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"expected \(B, 6,"):
        unpatchify(torch.zeros(1, 5, 12), (2, 2), (2, 3))


def test_norm_pix_is_mae_s():
    """By hand, patch by patch: the unbiased variance plus 1e-6."""
    patches = torch.randn(2, 3, 12, dtype=torch.float64)
    got = normalise_patches(patches)
    for image in range(2):
        for patch in range(3):
            pixels = patches[image, patch].tolist()
            mean = sum(pixels) / 12
            variance = sum((x - mean) ** 2 for x in pixels) / 11
            expected = [(x - mean) / (variance + 1e-6) ** 0.5 for x in pixels]
            assert got[image, patch].tolist() == pytest.approx(expected, rel=1e-9)
