"""Images without a masked patch: shown as a whole, and no part of any loss, meter or gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from amn_masking import CombinedAdversarialLoss, PatchMask
from amn_masking.estimators import ESTIMATORS
from amn_masking.meters import adversarial_gain, at_random, mask_statistics
from amn_masking.patches import image_means, masked_mean
from amn_masking.prediction import leave_out, predict_some
from tests.contract.cases import grid_of, images_of, model_of, refused
from tests.contract.contract import MODULES, load
from tests.contract.targets.target import Given
from tests.helpers import draws
from tests.helpers.selections import learn

TARGETS = {target.name: target for module in MODULES for target in load(module)[0]}
NOTHING = torch.zeros(3, 16)
HALF = torch.full((3, 16), 0.5)
SOME = torch.stack([torch.arange(16) < count for count in (5, 0, 15)]).float()


@given(draws.masks(free_counts=True))
def test_tokens_go_out_and_back(case):
    """A batch with such images in front and behind, beside what it says of the others alone."""
    mask, grid = case
    whole = torch.zeros_like(mask[:1])
    patch_mask = PatchMask.from_mask(torch.cat([whole, mask, whole]), grid)
    length = mask.shape[1]
    assert patch_mask.num_visible == length
    assert patch_mask.visible_counts.tolist() == [length, *(1 - mask).sum(1).int(), length]
    tokens = torch.randn(len(mask) + 2, length, 3)
    visible = patch_mask.gather_visible(tokens)
    assert torch.equal(visible[0], tokens[0])
    token = torch.tensor([7.0, 8.0, 9.0])
    hidden = patch_mask.mask[:, :, None].bool()
    assert torch.equal(patch_mask.scatter(visible, token), torch.where(hidden, token, tokens))
    others = PatchMask.from_mask(mask, grid)
    assert torch.equal(patch_mask.ids_shuffle[1:-1], others.ids_shuffle)
    alone = PatchMask.from_mask(torch.cat([whole, whole]), grid)
    assert (alone.masks_nothing, patch_mask.masks_nothing) == (True, False)
    assert alone.padding is None
    assert torch.equal(alone.ids_restore, torch.arange(length).expand(2, -1))
    assert alone.ids_mask.shape == (2, 0)
    pixels = patch_mask.pixel_mask(*(2 * side for side in grid))
    assert torch.equal(PatchMask.from_pixels(pixels, (2,) * len(grid)).mask, patch_mask.mask)


def test_those_taken_from_a_batch_with_others_mask_nothing():
    taken = PatchMask.from_mask(SOME).take(torch.tensor([1, 1]))
    assert taken.masks_nothing
    assert not PatchMask.from_mask(SOME).take(torch.tensor([1, 2])).masks_nothing
    with pytest.raises(ValueError, match="this mask masks none"):
        adversarial_gain(lambda masks: torch.ones(2, 16), taken)


def test_nothing_visible_stays_refused():
    with pytest.raises(ValueError, match=r"at least one visible patch of its 4, .*\[4, 0\]"):
        PatchMask.from_mask(torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]))


@pytest.mark.parametrize("score_weighted", [False, True])
def test_the_loss_is_that_of_the_others(score_weighted):
    """R that of the other images; A, a mean over the images, counts the image with 0."""
    loss = CombinedAdversarialLoss(score_weighted=score_weighted)
    pred, target = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    masked = torch.tensor([0, 2])
    whole = loss.terms(pred, target, PatchMask.from_mask(SOME))
    others = loss.terms(pred[masked], target[masked], PatchMask.from_mask(SOME[masked]))
    torch.testing.assert_close(whole.reconstruction, others.reconstruction)
    torch.testing.assert_close(whole.adversarial, others.adversarial * 2 / 3)
    everywhere = CombinedAdversarialLoss(reconstruct="all")
    for mask in (SOME, NOTHING):
        terms = everywhere.terms(pred, target, PatchMask.from_mask(mask))
        torch.testing.assert_close(terms.reconstruction, (pred - target).square().mean())


@pytest.mark.parametrize("give", [PatchMask.from_mask, lambda mask: mask])
def test_the_loss_of_nothing_is_0_with_a_gradient_of_0(give):
    pred = torch.randn(3, 16, 8, requires_grad=True)
    loss = CombinedAdversarialLoss()(pred, torch.randn(3, 16, 8), give(NOTHING))
    loss.backward()
    assert loss == 0
    assert torch.equal(pred.grad, torch.zeros_like(pred))
    assert masked_mean(torch.full((3, 16), math.nan), NOTHING) == 0
    assert torch.equal(image_means(torch.full((3, 16), math.nan), SOME)[1], torch.zeros(1))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("mask", [SOME, NOTHING], ids=["some", "nothing"])
def test_no_estimator_makes_a_gradient_of_them(name, mask):
    patch_mask, logits = PatchMask.from_mask(mask), torch.randn(3, 16, requires_grad=True)
    estimator = ESTIMATORS[name]()
    surrogate = mask + mask * (logits - logits.detach())
    learned = learn(patch_mask, logits, surrogate, estimator.objective, chances=HALF).learned
    objective = learned.objective(torch.rand(3, 16))
    objective.backward()
    assert objective == 0
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[1].any()


def test_meters_and_parts_count_them():
    patch_mask = PatchMask.from_mask(SOME)
    statistics = mask_statistics(patch_mask)
    assert [round(float(value), 4) for value in statistics.values()] == [0.4167, 0.0, 0.9375]
    drawn = at_random(patch_mask)
    assert torch.equal(drawn.mask.sum(1), SOME.sum(1))
    assert adversarial_gain(lambda masks: torch.ones(3, 16), patch_mask) == 1
    nothing = PatchMask.from_mask(NOTHING)
    with pytest.raises(ValueError, match="this mask masks none"):
        adversarial_gain(lambda masks: torch.ones(3, 16), nothing)
    with pytest.raises(ValueError, match="only 0 are masked"):
        predict_some(nothing, 1)
    assert leave_out(nothing, 4).mask.sum(1).tolist() == [4, 4, 4]
    clip = patch_mask.tubes(2)
    assert torch.equal(clip.mask, SOME.repeat(1, 2))
    assert clip.visible_counts.tolist() == [22, 32, 2]


@pytest.mark.parametrize("name", TARGETS)
def test_every_adapter_shows_such_an_image_as_a_whole_or_refuses(name):
    """An image without a masked patch, among others: as alone where counts may differ."""
    target = TARGETS[name]
    model, images = model_of(target), images_of(target)
    grid = grid_of(target)
    count = torch.tensor([math.prod(grid) // 2, 0, math.prod(grid) - 1])
    mask = torch.arange(math.prod(grid)) < count[:, None]
    given = Given(target.patch_size, PatchMask.from_mask(mask, grid))
    if not target.free_counts:
        assert refused(r"type='quantile'", lambda: target.step(model, images, given))
    else:
        step = target.step(model, images, given)
        error = masked_mean(step.error, step.patch_mask.mask)
        torch.testing.assert_close(step.reconstruction, error, rtol=1e-4, atol=1e-6)
        alone = Given(target.patch_size, PatchMask.from_mask(mask[1:2], grid))
        one = target.step(model, images[1:2], alone)
        torch.testing.assert_close(step.tokens[1:2], one.tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(step.error[1:2], one.error, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_a_batch_of_nothing_but_them_has_a_loss_of_0_or_is_refused(name):
    target = TARGETS[name]
    model, images = model_of(target), images_of(target)
    nothing = PatchMask.from_mask(torch.zeros(3, *grid_of(target)))
    step = lambda: target.step(model, images, Given(target.patch_size, nothing))  # noqa: E731
    if target.package == "lightly" or "VideoMAE" in name or "stable-pretraining" in name:
        assert refused("of this batch has one; leave the mask out", step)
        return
    done = step()
    assert torch.equal(done.tokens, target.all_tokens(model, images))
    assert done.loss == 0
    assert torch.isfinite(done.error).all()
    done.loss.backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
