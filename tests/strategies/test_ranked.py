"""Strategies that mask what some function of the images scores highest."""

from __future__ import annotations

import pytest
import torch

from amn_masking.strategies import (
    AttentionMasking,
    OracleMasking,
)
from tests.helpers.pictures import SIDE, images_of


def test_attention_and_oracle_ask_for_their_function():
    images = images_of((4, 4), 2)
    with pytest.raises(ValueError, match="expected attention=, a function from images"):
        AttentionMasking(0.5, SIDE)(images)
    with pytest.raises(ValueError, match="expected error=, a function from images"):
        OracleMasking(0.5, SIDE)(images)
    with pytest.raises(ValueError, match=r"expected to give \(2, 16\).*got \(2, 17\)"):
        AttentionMasking(0.5, SIDE, attention=lambda x: torch.zeros(2, 17))(images)
    with pytest.raises(ValueError, match=r"expected to give \(2, 16\).*got \(2, 15\)"):
        OracleMasking(0.5, SIDE, error=lambda x: torch.zeros(2, 15))(images)
