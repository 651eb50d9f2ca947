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
    slope = p * (1 - p)
    # tau moves so that the sum of p stays: by the mean of what the patches move, by their slopes.
    mean = (weight * slope).sum(1, keepdim=True) / slope.sum(1, keepdim=True)
    assert torch.allclose(logits.grad, (weight - mean) * slope / 0.5)
