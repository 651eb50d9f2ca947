"""Strategies that mask what some function of the images scores highest."""

from __future__ import annotations

import pytest

from amn_masking.counts import count_masked
from amn_masking.patches import pool_to_patches
from amn_masking.strategies import AttentionMasking, OracleMasking
from amn_masking.strategies.ranked import RankedMasking
from tests.helpers.pictures import SIDE, brightness, images_of


class BrightestFirst(RankedMasking):
    """The example of the docstring."""

    def priorities(self, images, num_masked, generator):
        return pool_to_patches(images, self.grid(images))


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75])
def test_the_first_patches_are_masked_and_their_number_is_exact(ratio):
    images = images_of((7, 5), 6)
    mask = BrightestFirst(ratio, SIDE)(images).mask.bool()
    assert (mask.sum(1) == count_masked(35, ratio)).all()
    for row, masked in zip(brightness(images), mask, strict=True):
        assert row[masked].min() > row[~masked].max()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "strategy",
    [
        BrightestFirst(0.5, SIDE),
        OracleMasking(0.5, SIDE, brightness),
        AttentionMasking(0.5, SIDE, attention=brightness),
        AttentionMasking(0.5, SIDE, hint_share=0.99, attention=brightness),
    ],
)
def test_priorities_that_are_no_numbers_are_refused(strategy, value):
    """One patch is enough, though it may be drawn as a hint."""
    images = images_of((4, 4), 32)
    images[:, :, :SIDE, :SIDE] = value
    message = f"{type(strategy).__name__} expected finite priorities"
    with pytest.raises(ValueError, match=message):
        strategy(images)
