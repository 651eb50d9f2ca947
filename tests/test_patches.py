"""Patches and the grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking.patches import grid_size, normalise_patches, patchify, unpatchify


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_patchify_matches_the_obvious_loop_and_inverts(p_h, p_w, h, w):
    images = torch.randn(2, 3, p_h * h, p_w * w)
    patches = patchify(images, (p_h, p_w))
    for row in range(h):
        for column in range(w):
            y, x = row * p_h, column * p_w
            expected = images[:, :, y : y + p_h, x : x + p_w].permute(0, 2, 3, 1).flatten(1)
            assert torch.equal(patches[:, row * w + column], expected)
    assert torch.equal(unpatchify(patches, (p_h, p_w), (h, w)), images)


@pytest.mark.parametrize("size", [(33, 32), (32, 40), (8, 32), (16, 8)])
def test_a_grid_that_does_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels does not split.*16 x 16"):
        grid_size(*size, (16, 16))


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
