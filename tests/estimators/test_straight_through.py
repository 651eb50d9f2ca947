"""The straight-through gradient against the written formula."""

from __future__ import annotations

import torch

from amn_masking.estimators import StraightThrough
from tests.helpers.selections import selected


def test_straight_through_is_the_sigmoid_s_gradient_at_the_logits_without_noise():
    logits, _, selection, patch_mask = selected(StraightThrough(temperature=0.5))
    weight = torch.randn(3, 6, dtype=torch.float64)
    (patch_mask.learned.surrogate * weight).sum().backward()
    p = ((logits - selection.tau) / 0.5).sigmoid().detach()
    assert torch.allclose(logits.grad, weight * p * (1 - p) / 0.5)
