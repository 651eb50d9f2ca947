"""What the masking network is paid for, and what is refused because it could not mean anything."""

from __future__ import annotations

import warnings

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.estimators import Ranking
from amn_masking.meters import score_entropy
from amn_masking.patches import masked_mean
from amn_masking.rewards import reward_scale
from amn_masking.strategies import AttentionMasking, HardPatchMasking, ShuffledMasking
from amn_masking.watch import STEPS
from tests.helpers.pictures import images_of
from tests.helpers.selections import selected


def gradient(masking, images, error):
    """The masking network's gradient, mean over 30 masks of the batch."""
    torch.manual_seed(0)
    loss = 0.0
    for _ in range(30):
        patch_mask = masking(images)
        known = (error * (1 + patch_mask.mask)).requires_grad_()
        loss = loss + masking.total_loss(known.mean(), known, patch_mask) / 30
    parameters = list(masking.network.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("estimator", ["straight_through", "inclusion", "score_function"])
@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_a_flat_image_does_not_outweigh_the_batch(estimator, noise):
    """The slightest error there used to be divided by next to nothing."""
    torch.manual_seed(0)
    masking = AdversarialMasking(
        0.5, 4, estimator=dict(type=estimator), reward="variance_normalised"
    )
    images = images_of((6, 6), batch=16)
    error = 0.3 * torch.rand(16, 36)
    error[0] *= 0.1  # flat images are easy
    usual = gradient(masking, images, error)
    images[0] = 0.3 + noise * torch.randn(3, 24, 24)
    got = gradient(masking, images, error)
    assert got.norm() < 3 * usual.norm()
    if estimator != "score_function":  # whose mean over 30 masks is mostly noise
        assert torch.cosine_similarity(got, usual, dim=0) > 0.8
    scale = reward_scale(images, (6, 6))
    assert (scale[0] >= 0.1 * scale[1:].mean() / 2.5).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_without_data_are_in_no_reward(value):
    images = images_of((6, 6), batch=8)
    valid = torch.ones(8, 36, dtype=torch.bool)
    valid[0, :6] = False
    images[0, :, :4] = value
    scale = reward_scale(images, (6, 6), valid)
    alone = reward_scale(images[:1, :, 4:], (5, 6))  # of one image: its own mean is the batch's
    assert torch.allclose(scale[0, 6:], alone[0])
    for estimator in ("straight_through", "inclusion", "score_function", "ranking"):
        masking = AdversarialMasking(
            0.25, 4, estimator=dict(type=estimator), reward="variance_normalised"
        )
        patch_mask = masking(images, valid=valid)
        error = torch.rand(8, 36).where(patch_mask.mask > 0, value).requires_grad_()
        loss = masking.total_loss(masked_mean(error, patch_mask.mask), error, patch_mask)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in masking.network.parameters())
        assert torch.isfinite(error.grad).all()


@pytest.mark.parametrize("wrap", [lambda m: m, ShuffledMasking])
def test_relative_errors_are_not_divided_by_the_variance_once_more(wrap):
    masking = wrap(AdversarialMasking(reward="variance_normalised"))
    masking.require("a method")
    with pytest.raises(ValueError, match=r"a method normalises.*norm_pix.*use reward='error'"):
        masking.require("a method", normalised_targets=True)
    wrap(AdversarialMasking()).require("a method", normalised_targets=True)


def test_ranking_at_negative_strength_learns_the_reversed_order():
    """Its steps are large where the order is wrong, and vanish where it is right."""
    for strength in (1.0, -1.0):
        logits, _, _, patch_mask = selected(Ranking())
        learned = patch_mask.learned
        learned.strength = strength
        error = torch.rand(3, 6, dtype=torch.float64)
        mask = patch_mask.mask.bool()
        with torch.no_grad():  # in the order that is sought, by far
            logits.copy_(50 * strength * error)
        (settled,) = torch.autograd.grad(learned.objective(error), logits)
        with torch.no_grad():
            logits.copy_(-50 * strength * error)
        (wrong,) = torch.autograd.grad(learned.objective(error), logits)
        assert wrong.abs().sum() > 1
        assert settled.abs().sum() < 0.1 * wrong.abs().sum()
        for row in range(3):  # the network takes strength times this step
            hardest = (error[row].where(mask[row], -1)).argmax()
            assert strength * (strength * wrong[row, hardest]) > 0
            assert (strength * wrong[row, hardest]).sign() == strength


@pytest.mark.parametrize("hint_share", [0.0, 0.3])
def test_equal_attention_masks_every_patch_equally_often(hint_share):
    masking = AttentionMasking(
        0.25, 4, hint_share=hint_share, attention=lambda images: torch.ones(len(images), 36)
    )
    frequency = masking(torch.zeros(4000, 3, 24, 24)).mask.mean(0)
    assert (frequency - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / 4000) ** 0.5


def test_images_without_a_channel_count_weigh_lambda_as_patches_do():
    """R then sums over the channels; the adversarial terms do too."""
    masking = AdversarialMasking(0.5, 4).eval()
    images = images_of((6, 6))
    patch_mask = masking(images)
    pred = torch.randn_like(images)
    plain = CombinedAdversarialLoss(score_weighted=False).terms(pred, images, patch_mask)
    told = CombinedAdversarialLoss(score_weighted=False, channel=3).terms(pred, images, patch_mask)
    for terms in (plain, told):
        assert torch.allclose(terms.reconstruction, terms.adversarial)
    assert torch.allclose(plain.adversarial, 3 * told.adversarial)


def test_a_schedule_that_nobody_moves_is_warned_of():
    masking = HardPatchMasking(0.5, 4, network=dict(channels=2))
    images = images_of((4, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            masking(images)
    assert any("random_share has a schedule, but set_progress" in str(w.message) for w in caught)


def test_score_entropy_says_no_opinion():
    """Of the scores as they are: standardised logits have the same spread whatever they say."""
    torch.manual_seed(0)
    masking = AdversarialMasking(0.5, 4)
    images = images_of((8, 8), batch=16)
    found = []
    for factor in (100.0, 1.0, 0.01):
        layer = masking.network.convolutions[-1]
        with torch.no_grad():
            layer.weight.mul_(factor)
        found.append(score_entropy(masking(images).learned.score_logits).item())
        with torch.no_grad():
            layer.weight.div_(factor)
    assert found[0] < 0.9 < 0.99 < found[1] < found[2]
    assert found[2] > 0.9999
