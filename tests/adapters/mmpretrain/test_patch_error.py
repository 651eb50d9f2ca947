"""Errors of patches from what the head's loss module is called with; method by method:
tests/methods."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmpretrain.models import losses

from amn_masking import CombinedAdversarialLoss, PatchMask
from amn_masking.adapters.mmpretrain.patch_error import (
    on_patches,
    patch_error,
    row_error,
    seen_by_loss,
)
from amn_masking.prediction import predict_some

MASK = PatchMask.from_mask(torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]]), (2, 3))


def vectors():
    return torch.randn(2, 6, 5), torch.randn(2, 6, 5)


def tokens():
    return torch.randn(7, 5), torch.randint(0, 5, (7,))


def with_latents():
    return *tokens(), torch.randn(1, 7, 4), torch.randn(1, 7, 4)


# A loss that averages, the arguments of a call, and the dimensions of a row.
LOSSES = {
    "pixels": (lambda: losses.PixelReconstructionLoss("L2"), vectors),
    "cosine": (lambda: losses.CosineSimilarityLoss(2.0, 3.0), vectors),
    "cosine, negative": (lambda: losses.CosineSimilarityLoss(), vectors),
    "cross entropy": (lambda: losses.CrossEntropyLoss(), tokens),
    "cae": (lambda: losses.CAELoss(lambd=0.3), with_latents),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_the_rows_is_what_the_module_says(name):
    make, arguments = LOSSES[name]
    module, call = make(), arguments()
    found = row_error(module, CombinedAdversarialLoss("L2"), *call).mean()
    whole = module(*call)
    whole = sum(whole) if isinstance(whole, tuple) else whole
    torch.testing.assert_close(found, whole)


def test_pixels_are_measured_by_the_combined_loss_s_own_criterion():
    pred, target = vectors()
    found = row_error(
        losses.PixelReconstructionLoss("L2"), CombinedAdversarialLoss("L1"), pred, target
    )
    torch.testing.assert_close(found, (pred - target).abs().mean(-1))


def test_every_form_of_an_error_comes_to_its_patch():
    error = torch.arange(12.0).reshape(2, 6)
    assert torch.equal(on_patches(error, MASK), error)
    with_class = torch.cat([torch.full((2, 1), 99.0), error], 1)
    assert torch.equal(on_patches(with_class, MASK), error)
    masked = on_patches(error[MASK.mask.bool()], MASK)
    assert torch.equal(masked, error * MASK.mask)
    pixels = error.reshape(2, 1, 2, 3).repeat_interleave(4, 2).repeat_interleave(5, 3)
    torch.testing.assert_close(on_patches(pixels.expand(-1, 3, -1, -1), MASK), error)


def test_the_errors_of_several_calls_are_added_up():
    module, calls = losses.CosineSimilarityLoss(), [vectors(), vectors()]
    one, two = (patch_error(module, [call], MASK, CombinedAdversarialLoss()) for call in calls)
    torch.testing.assert_close(
        patch_error(module, calls, MASK, CombinedAdversarialLoss()), one + two
    )


def test_calls_are_collected_by_position_and_only_for_the_duration():
    module = losses.PixelReconstructionLoss("L2")
    pred, target = vectors()
    with seen_by_loss(module, MASK) as calls:
        module(pred, target=target, mask=MASK.mask)
        module(pred, target)
    module(pred, target)
    assert [len(call) for call in calls] == [3, 2]
    assert calls[0][0] is pred
    assert calls[0][2] is MASK.mask
    assert not module._forward_pre_hooks


# Three patches of each image are masked, of which one is left out.
WHOLE = PatchMask.from_mask(torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]]), (2, 3))
PART = predict_some(WHOLE, 2, deterministic=True)


def images():
    return torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)


# A loss that averages, its criterion, and the arguments of a call for all masked patches.
CALLS = {
    "patches": (losses.PixelReconstructionLoss, "L2", lambda: (*vectors(), WHOLE.mask)),
    "bool": (losses.PixelReconstructionLoss, "L2", lambda: (*vectors(), WHOLE.mask.bool())),
    "int": (losses.PixelReconstructionLoss, "L2", lambda: (*vectors(), WHOLE.mask.int())),
    "images": (
        lambda criterion: losses.PixelReconstructionLoss(criterion, channel=3),
        "L1",
        lambda: (*images(), WHOLE.pixel_mask(4, 6)),
    ),
    "cosine": (
        lambda criterion: losses.CosineSimilarityLoss(2.0, 3.0),
        "L2",
        lambda: (*vectors(), WHOLE.mask),
    ),
    "rows": (
        lambda criterion: losses.CrossEntropyLoss(),
        "L2",
        lambda: (torch.randn(6, 5), torch.randint(0, 5, (6,))),
    ),
    "rows and latents": (
        lambda criterion: losses.CAELoss(lambd=0.3),
        "L2",
        lambda: (
            torch.randn(6, 5),
            torch.randint(0, 5, (6,)),
            torch.randn(2, 3, 4),
            torch.randn(2, 3, 4),
        ),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_loss_is_the_mean_error_of_what_is_predicted(name):
    make, criterion, arguments = CALLS[name]
    module, call, combined = make(criterion), arguments(), CombinedAdversarialLoss(criterion)
    with seen_by_loss(module, PART) as calls:
        loss = module(*call)
    error = patch_error(module, calls, PART, combined)
    whole = patch_error(module, [call], WHOLE, combined)
    predicted = PART.predicted > 0
    assert torch.equal(error[predicted], whole[predicted])
    assert not error[PART.mask > PART.predicted].any()
    torch.testing.assert_close(
        error[predicted].mean(), sum(loss) if isinstance(loss, tuple) else loss
    )
    assert [x.dtype for x in calls[0]] == [x.dtype for x in call]


@pytest.mark.parametrize("rest", [(), (None,)])
def test_a_loss_over_all_tokens_is_over_all_but_those_left_out(rest):
    module = losses.CosineSimilarityLoss(2.0, 2.0)
    pred, target = torch.randn(2, 1 + 6, 5), torch.randn(2, 1 + 6, 5)
    with seen_by_loss(module, PART):
        loss = module(pred, target, *rest)
    errors = row_error(module, CombinedAdversarialLoss(), pred, target)
    counted = torch.cat([torch.ones(2, 1, dtype=torch.bool), PART.counted], 1)
    torch.testing.assert_close(loss, errors[counted].mean())


def test_a_combined_loss_gets_the_patch_mask_in_place_of_the_plain_one():
    module, (pred, target) = CombinedAdversarialLoss(), vectors()
    got = []
    module.forward = lambda pred, target, mask: got.append(mask)
    with seen_by_loss(module, MASK):
        module(pred, target, MASK.mask)
    assert got == [MASK]
