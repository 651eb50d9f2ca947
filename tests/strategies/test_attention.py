"""Masks by attention."""

from __future__ import annotations

import pytest
import torch

from amn_masking.strategies import AttentionMasking
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of


def test_the_most_attended_patches_are_masked():
    images = images_of((7, 5), 6)
    mask = AttentionMasking(0.4, SIDE, attention=brightness)(images).mask.bool()
    for row, masked in zip(brightness(images), mask, strict=True):
        assert row[masked].min() > row[~masked].max()


def test_hints_are_a_random_share_of_those_and_are_refilled_with_the_next():
    images = images_of((8, 8), 2000)
    images[:] = images[:1]
    strategy = AttentionMasking(0.25, SIDE, hint_share=0.5, attention=brightness)
    mask = strategy(images, generator(0)).mask
    rank = brightness(images[:1])[0].argsort(descending=True)
    share = mask.mean(0)[rank]  # 16 are masked, 8 hints of the top 16, the next 8 in their place
    assert (mask.sum(1) == 16).all()
    assert share[:16].numpy() == pytest.approx(0.5, abs=0.06)
    assert (share[16:24] == 1).all()
    assert (share[24:] == 0).all()


def test_it_asks_for_its_function():
    images = images_of((4, 4), 2)
    with pytest.raises(ValueError, match="expected attention=, a function from images"):
        AttentionMasking(0.5, SIDE)(images)
    with pytest.raises(ValueError, match=r"expected to give \(2, 16\).*got \(2, 17\)"):
        AttentionMasking(0.5, SIDE, attention=lambda x: torch.zeros(2, 17))(images)
