"""The ranking objective against the written formula."""

from __future__ import annotations

import pytest
import torch

from amn_masking import PatchMask
from amn_masking.estimators import Ranking
from amn_masking.thresholds import Quantile
from tests.helpers.selections import choose, learn, selected


@pytest.mark.parametrize("free", [False, True])
def test_ranking_is_the_mean_log_likelihood_of_the_order(free):
    logits, _, _, patch_mask = selected(Ranking(), free)
    error, mask = torch.rand(3, 6, dtype=torch.float64), patch_mask.mask
    error[0, :3] = 0.5  # equal errors have no order
    (got,) = torch.autograd.grad(patch_mask.learned.objective(error), logits)
    total = 0.0
    for row in range(3):
        pairs = [
            (i, j)
            for i in range(6)
            for j in range(6)
            if mask[row, i] and mask[row, j] and error[row, i] > error[row, j]
        ]
        for i, j in pairs:
            difference = logits[row, i] - logits[row, j]
            total = total - torch.log1p((-difference).exp()) / len(pairs) / 3
    (expected,) = torch.autograd.grad(total, logits)
    assert torch.allclose(got, expected)


def test_ranking_has_no_gradient_through_the_mask():
    _, _, _, patch_mask = selected(Ranking())
    assert not patch_mask.learned.surrogate.requires_grad


def test_one_masked_patch_has_no_order_and_no_gradient():
    logits = torch.randn(2, 4, requires_grad=True)
    selection = choose(Quantile(), logits.detach(), logits, (2, 2), 0.25)
    patch_mask = learn(selection.patch_mask, logits, estimate=Ranking().objective)
    patch_mask.learned.objective(torch.rand(2, 4)).backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad.any()


def test_at_negative_strength_it_is_the_likelihood_of_the_reversed_order():
    """Gradients are reversed where the mask is made: so -1 minimises what +1 of -reward does."""
    gradients = []
    for strength, sign in ((1.0, 1.0), (-1.0, -1.0)):
        logits = torch.tensor([[0.3, -0.2, 0.9, 0.1]], requires_grad=True)
        patch_mask = PatchMask.from_mask(torch.tensor([[1.0, 1, 1, 0]]))
        learned = learn(patch_mask, logits, strength=strength).learned
        reward = sign * torch.tensor([[1.0, 2.0, 3.0, 0.0]])
        (gradient,) = torch.autograd.grad(strength * Ranking().objective(reward, learned), logits)
        gradients.append(gradient)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("strength", [0.0, 0.3, -0.3])
def test_the_order_goes_by_the_sign_of_the_strength_and_not_by_its_size(strength):
    gradients = []
    for value in (strength, 1.0 if strength >= 0 else -1.0):
        logits = torch.tensor([[0.3, -0.2, 0.9, 0.1]], requires_grad=True)
        patch_mask = PatchMask.from_mask(torch.tensor([[1.0, 1, 1, 0]]))
        learned = learn(patch_mask, logits, strength=value).learned
        objective = Ranking().objective(torch.tensor([[1.0, 2.0, 3.0, 0.0]]), learned)
        gradients.append(torch.autograd.grad(objective, logits)[0])
    assert torch.equal(*gradients)
