"""What a learning strategy makes beside the mask."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss

LENGTH = 16


def made(**options):
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4, **options)
    return masking, masking(torch.randn(3, 3, 16, 16))


def test_the_surrogate_is_the_chosen_mask_bit_for_bit():
    _, patch_mask = made()
    learned = patch_mask.learned
    assert torch.equal(learned.surrogate, patch_mask.mask)
    assert torch.equal(learned.chosen.mask, patch_mask.mask)
    assert learned.surrogate.requires_grad


@pytest.mark.parametrize("options", [{}, dict(entropy_weight=0.7)], ids=["plain", "entropy"])
@pytest.mark.parametrize("reward", ["error", "variance_normalised"])
def test_the_objective_is_zero_in_value_and_not_in_gradient(options, reward):
    masking, patch_mask = made(reward=reward, **options)
    objective = patch_mask.learned.objective(torch.rand(3, LENGTH, requires_grad=True))
    assert objective.item() == 0
    objective.backward()
    assert any(p.grad.abs().max() > 0 for p in masking.network.parameters())


def test_the_entropy_term_is_not_reversed():
    """With nothing else to learn (equal rewards) a step evens the chances out."""
    for strength in (1.0, -1.0):
        masking, patch_mask = made(entropy_weight=1.0, strength=strength, standardise=False)
        (weight, *_) = masking.network.parameters()
        wanted = patch_mask.learned.regulariser.mean()
        (wanted,) = torch.autograd.grad(wanted, weight, retain_graph=True)
        patch_mask.learned.objective(torch.ones(3, LENGTH, requires_grad=True)).backward()
        assert (weight.grad * wanted).sum() > 0  # descent lowers the regulariser, minus the entropy


def test_errors_at_patches_that_were_not_chosen_do_not_matter():
    _, patch_mask = made()
    error = torch.rand(3, LENGTH)
    other = error.where(patch_mask.mask > 0, float("nan"))
    gradients = [
        torch.autograd.grad(
            patch_mask.learned.objective(e), patch_mask.learned.logits, retain_graph=True
        )[0]
        for e in (error, other)
    ]
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_the_error_gets_no_gradient_from_the_objective():
    _, patch_mask = made()
    error = torch.rand(3, LENGTH, requires_grad=True)
    patch_mask.learned.objective(error).backward()
    assert error.grad is None


def test_masks_that_are_taken_leave_the_reward_s_scale_with_its_image():
    _, patch_mask = made(reward="variance_normalised", entropy_weight=1.0)
    order = torch.tensor([2, 0, 1])
    learned, taken = patch_mask.learned, patch_mask.learned.take(order)
    for name in ("logits", "surrogate", "patch_scores", "score_map", "threshold", "regulariser"):
        assert torch.equal(getattr(taken, name), getattr(learned, name)[order]), name
    assert torch.equal(taken.chosen.mask, patch_mask.mask[order])
    assert torch.equal(taken.reward_scale, learned.reward_scale)


@pytest.mark.parametrize("estimator", ["inclusion", "score_function"])
def test_a_mask_moves_to_another_device_as_a_whole(estimator):
    masking = AdversarialMasking(
        0.5, (2, 4, 4), estimator=dict(type=estimator), reward="variance_normalised",
        random_share=0.25, entropy_weight=1.0
    )  # fmt: skip
    here = masking(torch.randn(3, 3, 2, 16, 16)).tubes(2)

    def compare(here, there):
        for field in fields(here):
            value, moved = getattr(here, field.name), getattr(there, field.name)
            if isinstance(value, torch.Tensor):
                assert (moved.shape, moved.device.type) == (value.shape, "meta"), field.name
            elif is_dataclass(value):
                compare(value, moved)
            else:
                assert moved is value, field.name

    compare(here, here.to("meta"))


def test_a_detached_mask_is_the_same_and_trains_nothing():
    masking, patch_mask = made(entropy_weight=1.0)
    detached = patch_mask.detach()
    assert torch.equal(detached.mask, patch_mask.mask)
    assert torch.equal(detached.learned.logits, patch_mask.learned.logits)
    assert not detached.learned.logits.requires_grad
    error = torch.rand(3, LENGTH, requires_grad=True)
    masking.total_loss(error.mean(), error, detached).backward()
    assert all(p.grad is None for p in masking.parameters())


def test_a_detached_mask_may_be_looked_at_by_any_loss():
    _, patch_mask = made(loss=dict(lambda_adv=0.5))
    error, logged = torch.rand(3, LENGTH), CombinedAdversarialLoss()
    with pytest.raises(ValueError, match="reaches another CombinedAdversarialLoss"):
        logged.adversarial_terms(error, patch_mask)
    logged.adversarial_terms(error, patch_mask.detach())


def test_a_mask_made_without_gradients_is_refused_by_a_loss_that_trains():
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4)
    with torch.no_grad():
        patch_mask = masking(torch.randn(3, 3, 16, 16))
    error = torch.rand(3, LENGTH, requires_grad=True)
    with pytest.raises(ValueError, match=r"made under torch\.no_grad\(\)"):
        masking.total_loss(error.mean(), error, patch_mask)
    masking.total_loss(error.detach().mean(), error.detach(), patch_mask)  # only looked at
    masking.network.requires_grad_(False)  # a control that is not to be trained
    with torch.no_grad():
        patch_mask = masking(torch.randn(3, 3, 16, 16))
    masking.total_loss(error.mean(), error, patch_mask)


def test_a_detached_mask_tells_a_threshold_of_nothing():
    """Else a logged loss would move the controller a second time."""
    masking, patch_mask = made(threshold=dict(type="difficulty"), random_share=0.25)
    before = masking.threshold.ratio.clone()
    error = torch.rand(3, LENGTH)
    masking.total_loss(error.mean(), error, patch_mask.detach())
    assert masking.threshold.ratio == before
    assert masking.watch.objectives == 0
    masking.total_loss(error.mean(), error, patch_mask)
    assert masking.threshold.ratio != before
    assert masking.watch.objectives == 1
