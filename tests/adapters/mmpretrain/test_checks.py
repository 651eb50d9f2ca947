"""What a method must be and a strategy must do: refused before anything runs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from amn_masking import MaskingStrategy, PatchMask
from tests.helpers import small_mae
from tests.methods.matrix import LEARNED, build
from tests.methods.small_methods import SMALL


def never_called(model):
    """The model, whose backbone must not be called."""
    model.backbone.register_forward_pre_hook(lambda *args: pytest.fail("the encoder was called"))
    return model


def reshaped(view, height, width):
    """The view's pixels as images of another shape with as many patches."""
    return view.reshape(*view.shape[:2], height, width)


@pytest.mark.parametrize("label", [label for label in SMALL if label != "SimMIM"])
def test_images_of_another_grid_with_as_many_patches_are_refused(label, photos):
    """Half as high and twice as wide; also where the host itself would train on, at wrong
    positions."""
    model, inputs, samples = build(label, photos, masking=LEARNED)
    views = inputs if isinstance(inputs, list) else [inputs]
    views = [reshaped(v, v.shape[2] // 2, v.shape[3] * 2) for v in views]
    side = 14 if label == "MaskFeat" else 4
    message = f"{side // 2} x {side * 2} patches .* is built for {side} x {side}; resize them to"
    with pytest.raises(ValueError, match=message):
        never_called(model).loss(views if isinstance(inputs, list) else views[0], samples)


def test_simmim_takes_images_of_any_grid(photos):
    """Its positions are relative: stock takes them too."""
    model, inputs, samples = build("SimMIM", photos, masking=LEARNED)
    losses = model.loss(torch.cat([inputs, inputs], 3), samples)
    assert torch.isfinite(losses["loss"])


class Transposed(MaskingStrategy):
    """A mask over another grid than the images'."""

    def forward(self, images, generator=None):
        return PatchMask.from_shuffle(torch.rand(len(images), 16).argsort(1), 8, (2, 8))


class OneForAll(MaskingStrategy):
    """One mask for the whole batch."""

    def forward(self, images, generator=None):
        return PatchMask.from_shuffle(torch.rand(1, 16).argsort(1), 8, (4, 4))


@pytest.mark.parametrize(
    ("kind", "got"), [(Transposed, r"got \(3, 2, 8\)"), (OneForAll, r"got \(1, 4, 4\)")]
)
def test_a_mask_that_is_not_of_these_images_is_refused(kind, got):
    model = never_called(small_mae.build(masking=kind(8)))
    with pytest.raises(
        ValueError, match=r"MAE's MAEViT expected a mask of .* = \(3, 4, 4\).*" + got
    ):
        model.loss(torch.randn(3, 3, 32, 32), [])


class Nothing(MaskingStrategy):
    """Masks no patch of the batch, or none of its first image."""

    some = 0.0

    def forward(self, images, generator=None):
        mask = torch.zeros(len(images), 4, 4)
        mask[1:, 1] = self.some
        return PatchMask.from_mask(mask)


def test_a_batch_of_which_nothing_is_masked_is_refused_and_not_a_loss_of_nan():
    model = small_mae.build(masking=Nothing(8))
    with pytest.raises(ValueError, match=r"MAE expected masked patches, .* mask one at least"):
        never_called(model).loss(torch.randn(3, 3, 32, 32), [])
    model = small_mae.build(masking=Nothing(8))
    model.masking.some = 1.0
    losses, gradients = small_mae.step(model)
    assert losses["mask_ratio_min"] == 0
    assert torch.isfinite(losses["loss"])
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_a_strict_load_without_a_strategy_says_which_weights_nobody_takes():
    masked = small_mae.build(masking=dict(type="AdversarialMasking"))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*masking\.network"):
        small_mae.build().load_state_dict(masked.state_dict())


NO_PIXELS = ("EVA", "MILAN", "MaskFeat", "BEiT v1", "BEiT v2", "CAE", "iTPN (clip)")


@pytest.mark.parametrize("label", SMALL)
def test_a_reward_relative_to_the_pixels_is_for_errors_of_pixels(label, photos):
    masking = LEARNED | dict(reward="variance_normalised")
    if label == "SimMIM":
        build(label, photos, masking=masking)
        return
    message = "does not predict pixels" if label in NO_PIXELS else "normalises each patch of its"
    with pytest.raises(ValueError, match=message + r".*use reward='error'"):
        build(label, photos, masking=masking)
