"""The combined loss: its value against the obvious sums, and where its gradient goes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import nn

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, PatchMask, RandomMasking
from amn_masking.network import pool_scores, standardise_logits, to_logits
from amn_masking.patches import patchify
from tests.helpers import draws
from tests.helpers.autoencoder import Autoencoder
from tests.helpers.selections import learn


def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


PLAIN = dict(type="straight_through")  # whose gradient is easily written anew


def one_step(strength=1.0, lambda_adv=0.5, gate=False, freeze_masking=False, **loss_options):
    """Gradients of the autoencoder and of the masking network after one backward."""
    torch.manual_seed(0)
    model = Autoencoder()
    masking = AdversarialMasking(0.5, 4, estimator=PLAIN, strength=strength, gate=gate)
    images = torch.randn(3, 3, 24, 24)
    patch_mask = masking(images, generator=torch.Generator().manual_seed(0))
    if freeze_masking:
        patch_mask = patch_mask.detach()
    criterion = CombinedAdversarialLoss(lambda_adv=lambda_adv, **loss_options)
    loss = criterion(model(images, patch_mask), patchify(images, (4, 4)), patch_mask)
    loss.backward()
    return gradients(model), gradients(masking.network), loss.detach()


@pytest.mark.parametrize("leading", [(), (1,), (2, 1)])
def test_counts_of_pixels_broadcast_to_the_error(leading):
    pred, target = torch.randn(2, 2, 3, 4, 6)
    counts = (torch.rand(4, 6) > 0.5).float()
    error = CombinedAdversarialLoss().error(pred, target, counts.expand(*leading, 4, 6))
    wanted = ((pred - target) ** 2).where(counts.expand(2, 3, 4, 6) > 0, 0.0)
    assert torch.equal(error.where(counts > 0, 0.0), wanted)


@given(draws.masks(free_counts=True))
def test_the_value_is_the_obvious_sum(case):
    mask, grid = case
    both = torch.randn(2, *mask.shape, 5, dtype=torch.float64)
    pred, target = both
    logits = torch.randn(mask.shape, dtype=torch.float64)
    patch_mask = learn(PatchMask.from_mask(mask, grid), logits)
    loss = CombinedAdversarialLoss(lambda_adv=0.3)(pred, target, patch_mask)
    top = bottom = adversarial = 0.0
    for row in range(mask.shape[0]):
        weighted = weight = 0.0
        for patch in range(mask.shape[1]):
            if mask[row, patch]:
                error = sum((p - t) ** 2 for p, t in zip(*both[:, row, patch], strict=True)) / 5
                w = torch.sigmoid(logits[row, patch])
                top, bottom = top + error, bottom + 1
                weighted, weight = weighted + w * error, weight + w
        adversarial += weighted / weight / mask.shape[0]
    assert torch.allclose(loss, top / bottom + 0.3 * adversarial)


def test_nothing_reaches_the_autoencoder_through_the_mask():
    """Its gradient is that of the same loss under the same mask as plain numbers, exactly."""
    with_masking, adversary, _ = one_step()
    without, nothing, _ = one_step(freeze_masking=True)
    assert all(torch.equal(a, b) for a, b in zip(with_masking, without, strict=True))
    assert all(g is not None and g.abs().max() > 0 for g in adversary[:1])
    assert all(g is None for g in nothing)


def test_the_masking_network_s_gradient_is_the_reversed_one():
    """It is -strength * lambda times the gradient of the objective, and nothing of R or A.

    The objective is written anew from the network's own output, where nothing is reversed.
    """
    torch.manual_seed(0)
    model = Autoencoder()
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4, estimator=PLAIN)
    images = torch.randn(3, 3, 24, 24)
    patch_mask = masking(images, generator=torch.Generator().manual_seed(0))
    pred = model(images, patch_mask).detach()
    error = (pred - patchify(images, (4, 4))).square().mean(-1)
    mask = patch_mask.mask
    advantage = mask * (error - (error * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True))
    logits = standardise_logits(to_logits(pool_scores(masking.network(images), (6, 6))), 1.0)
    soft = torch.sigmoid(logits - torch.logit(patch_mask.learned.threshold)[:, None])
    slope = (soft * (1 - soft)).detach()
    mean = (advantage * slope).sum(1, keepdim=True) / slope.sum(1, keepdim=True)
    slope = slope * (advantage - mean)
    ((slope * logits).sum(1) / mask.sum(1)).mean().backward()
    expected = gradients(masking.network)
    for strength, lambda_adv in ((1.0, 0.5), (-1.0, 0.5), (0.25, 2.0), (0.0, 1.0)):
        _, got, _ = one_step(strength, lambda_adv)
        for g, e in zip(got, expected, strict=True):
            assert torch.allclose(g, -strength * lambda_adv * e, atol=1e-7, rtol=1e-3)


def test_a_step_makes_hard_masked_patches_score_higher():
    """The direction that a user cares about: up at +1, down at -1."""
    for strength in (1.0, -1.0):
        torch.manual_seed(0)
        masking = AdversarialMasking(mask_ratio=0.5, patch_size=4, strength=strength)
        images = torch.randn(8, 3, 24, 24)
        optimizer = torch.optim.SGD(masking.parameters(), lr=1e-2)
        patch_mask = masking(images)
        error = images.square().mean(1, keepdim=True)
        error = nn.functional.avg_pool2d(error, 4).flatten(1)

        def hard_minus_easy(logits, error=error, mask=patch_mask.mask):
            mean = (error * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
            return (mask * (error - mean) * logits).sum().item()

        before = hard_minus_easy(patch_mask.learned.logits)
        patch_mask.learned.objective(error).backward()
        optimizer.step()
        change = hard_minus_easy(masking(images).learned.logits) - before
        assert change * strength > 0


def test_with_strength_zero_the_network_gets_a_zero_gradient_not_none():
    """DDP raises where a parameter gets none."""
    _, adversary, _ = one_step(strength=0.0)
    assert all(g is not None and not g.any() for g in adversary)


def test_lambda_zero_is_the_reconstruction_alone():
    with_loss, adversary, loss = one_step(lambda_adv=0.0)
    torch.manual_seed(0)
    model = Autoencoder()
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4, estimator=PLAIN)
    images = torch.randn(3, 3, 24, 24)
    patch_mask = masking(images, generator=torch.Generator().manual_seed(0))
    error = (model(images, patch_mask) - patchify(images, (4, 4))).square().mean(-1)
    expected = (error * patch_mask.mask).sum() / patch_mask.mask.sum()
    expected.backward()
    assert torch.equal(loss, expected.detach())
    for got, want in zip(with_loss, gradients(model), strict=True):
        assert torch.allclose(got, want, atol=1e-7)
    assert all(not g.any() for g in adversary)


def test_the_gate_adds_the_reversed_reconstruction_gradient():
    plain_model, plain, plain_loss = one_step()
    gated_model, gated, gated_loss = one_step(gate=True)
    assert torch.equal(plain_loss, gated_loss)
    assert all(torch.equal(a, b) for a, b in zip(plain_model, gated_model, strict=True))
    assert any(not torch.allclose(a, b) for a, b in zip(plain, gated, strict=True))


def test_images_and_patches_give_the_same_terms():
    torch.manual_seed(0)
    images, pred = torch.randn(2, 2, 3, 24, 16)
    patch_mask = AdversarialMasking(mask_ratio=0.5, patch_size=4)(images)
    criterion = CombinedAdversarialLoss()
    assert criterion.lambda_adv == 0.5
    from_patches = criterion.terms(patchify(pred, (4, 4)), patchify(images, (4, 4)), patch_mask)
    from_images = CombinedAdversarialLoss(channel=3).terms(pred, images, patch_mask)
    for one, other in zip(from_patches, from_images, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_reconstruct_all_counts_every_patch_and_leaves_the_adversarial_term():
    pred, target = torch.randn(2, 2, 9, 4)
    patch_mask = RandomMasking(0.5, 1)(torch.zeros(2, 1, 3, 3))
    masked = CombinedAdversarialLoss().terms(pred, target, patch_mask)
    everything = CombinedAdversarialLoss(reconstruct="all").terms(pred, target, patch_mask)
    assert torch.allclose(everything.reconstruction, (pred - target).square().mean())
    assert torch.equal(everything.adversarial, masked.adversarial)


def test_a_plain_mask_has_no_adversary_and_equal_weights():
    pred, target = torch.randn(2, 2, 9, 4)
    mask = torch.zeros(2, 9)
    mask[:, :3] = 1
    terms = CombinedAdversarialLoss().terms(pred, target, mask)
    assert torch.equal(terms.reconstruction, terms.adversarial)
    assert not terms.objective.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(criterion="L3"), r"\['L1', 'L2'\], got 'L3'"),
        (dict(lambda_adv=-1), "cooperative mask is strength=-1"),
        (dict(reconstruct="visible"), "'masked' or 'all', got 'visible'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CombinedAdversarialLoss(**options)


@pytest.mark.parametrize("size", [(7, 6), (6, 7)])
def test_an_error_that_does_not_split_into_the_grid_is_refused(size):
    mask, images = PatchMask.from_mask(torch.eye(9)[:1]), torch.zeros(1, 3, *size)
    with pytest.raises(ValueError, match="does not split into a grid of 3 x 3"):
        CombinedAdversarialLoss()(images, images, mask)


def test_shapes_that_do_not_fit_are_refused():
    criterion = CombinedAdversarialLoss()
    with pytest.raises(ValueError, match=r"got \(1, 4, 2\) and \(1, 5, 2\)"):
        criterion(torch.zeros(1, 4, 2), torch.zeros(1, 5, 2))
    patch_mask = RandomMasking(0.5, 1)(torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match=r"\(B, L, D\).*got \(1, 9, 1\) for \(1, 4, 2\)"):
        criterion(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), patch_mask)
    with pytest.raises(ValueError, match=r"per-patch error of shape \(B, L\) = \(1, 9\)"):
        criterion.adversarial_terms(torch.zeros(1, 4), patch_mask)
    for wrong in (images := torch.zeros(1, 4, 2)).numpy(), images.tolist():
        with pytest.raises(TypeError, match=r"(pred|target) expected a torch.Tensor, got"):
            criterion(wrong, images)
        with pytest.raises(TypeError, match=r"(pred|target) expected a torch.Tensor, got"):
            criterion(images, wrong, patch_mask)


@pytest.mark.parametrize("criterion", ["L1", "L2"])
@pytest.mark.parametrize("kind", ["patches", "images"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_target_that_is_not_a_number_where_nothing_is_masked_gives_no_gradient(
    criterion, kind, as_tensor
):
    patch_mask = RandomMasking(0.5, 2)(torch.zeros(2, 3, 6, 6))
    target = torch.randn(2, 9, 4) if kind == "patches" else torch.randn(2, 3, 6, 6)
    hidden = patch_mask.mask[..., None] if kind == "patches" else patch_mask.pixel_mask(6, 6)
    mask = hidden.squeeze(-1) if as_tensor else patch_mask
    found = []
    for fill in (0.0, float("nan")):
        pred = torch.ones_like(target, requires_grad=True)
        loss = CombinedAdversarialLoss(criterion)(pred, target.where(hidden > 0, fill), mask)
        loss.backward()
        found += [loss.detach(), pred.grad]
    assert found[0] == found[2]
    assert torch.equal(found[1], found[3])
    assert found[3].isfinite().all()
    assert (found[3].where(hidden == 0, 0.0) == 0).all()


def test_channel_divides_all_terms_of_patches_too():
    patch_mask = RandomMasking(0.5, 2)(torch.zeros(2, 3, 6, 6))
    pred, target = torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    one = CombinedAdversarialLoss().terms(pred, target, patch_mask)
    three = CombinedAdversarialLoss(channel=3).terms(pred, target, patch_mask)
    torch.testing.assert_close(three.reconstruction, one.reconstruction / 3)
    torch.testing.assert_close(three.adversarial, one.adversarial / 3)


def test_scores_that_round_to_zero_give_no_nan():
    patch_mask = PatchMask.from_mask(torch.tensor([[1.0, 0, 0, 0]]))
    patch_mask = learn(patch_mask, torch.full((1, 4), -200.0))
    terms = CombinedAdversarialLoss().terms(torch.ones(1, 4, 2), torch.zeros(1, 4, 2), patch_mask)
    assert terms.reconstruction == 1
    assert terms.adversarial == 0


@pytest.mark.parametrize("mask", [None, torch.tensor([[1.0, 0, 0, 1]])], ids=["none", "tensor"])
def test_all_patches_are_reconstructed_and_the_adversarial_term_is_of_the_mask(mask):
    """Also without a PatchMask."""
    pred, target = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    terms = CombinedAdversarialLoss(reconstruct="all").terms(pred, target, mask)
    error = (pred - target).square().mean(2)
    torch.testing.assert_close(terms.reconstruction, error.mean())
    masked = error.mean() if mask is None else (error * mask).sum() / 2
    torch.testing.assert_close(terms.adversarial, masked)
