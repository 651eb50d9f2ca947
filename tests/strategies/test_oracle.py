"""Masks by the error itself."""

from __future__ import annotations

import pytest
import torch

from amn_masking.strategies import OracleMasking
from tests.helpers.pictures import SIDE, brightness, images_of


@pytest.mark.parametrize("training", [True, False])
def test_the_patches_of_the_largest_error_are_masked(training):
    images = images_of((7, 5), 6)
    mask = OracleMasking(0.4, SIDE, brightness).train(training)(images).mask.bool()
    for row, masked in zip(brightness(images), mask, strict=True):
        assert row[masked].min() > row[~masked].max()


def test_the_error_is_asked_without_a_gradient():
    weight = torch.ones((), requires_grad=True)
    recorded = []

    def error(images):
        recorded.append(torch.is_grad_enabled())
        return brightness(images) * weight

    assert not OracleMasking(0.4, SIDE, error)(images_of((4, 4), 2)).mask.requires_grad
    assert recorded == [False]


def test_it_asks_for_its_function():
    images = images_of((4, 4), 2)
    with pytest.raises(ValueError, match="expected error=, a function from images"):
        OracleMasking(0.5, SIDE)(images)
    with pytest.raises(ValueError, match=r"expected to give \(2, 16\).*got \(2, 15\)"):
        OracleMasking(0.5, SIDE, error=lambda x: torch.zeros(2, 15))(images)
