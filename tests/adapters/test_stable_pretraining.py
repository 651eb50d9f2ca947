"""Masks for a model that hands its tokens to a masking module, on one of stable-pretraining's
interface.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

pytest.importorskip("timm", reason="needs the extra 'timm'")

from timm.models.vision_transformer import VisionTransformer

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.adapters.stable_pretraining import TokensMaskedMixin
from amn_masking.meters import adversarial_gain
from amn_masking.patches import masked_mean
from tests.helpers.token_masked_model import MAE, PatchMasking


class Learned(TokensMaskedMixin, MAE):
    """As a user writes it."""


def build(kind=Learned, **options):
    torch.manual_seed(0)
    vit = VisionTransformer(
        (32, 48), 8, embed_dim=16, depth=2, num_heads=2, num_classes=0, drop_path_rate=0.5
    )
    return kind(vit, **options)


def images(batch=3):
    return torch.randn(batch, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def learned(**options):
    torch.manual_seed(2)
    return AdversarialMasking(**dict(mask_ratio=0.5, patch_size=8) | options)


def seeded(model, *args):
    torch.manual_seed(3)
    return model(*args)


def test_with_a_masking_module_of_the_library_it_is_the_stock_model():
    for options in ({}, dict(masking=PatchMasking(0.5))):
        model, stock = build(**options), build(MAE, **options)
        for training in (True, False):
            one, other = (seeded(each.train(training), images()) for each in (model, stock))
            assert torch.equal(one.loss, other.loss)
            assert torch.equal(one.predictions, other.predictions)


def test_in_eval_nothing_is_masked_as_ever():
    model, stock = build(masking=learned()).eval(), build(MAE).eval()
    assert torch.equal(model(images()).predictions, stock(images()).predictions)


def test_the_strategy_is_a_submodule_of_the_model_and_not_of_the_encoder():
    model = build(masking=learned())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert sum(name.startswith("masking.") for name in names) > 0
    assert not any(name.startswith("encoder.masking") for name in names)
    later = build()
    later.masking = learned()
    assert [name for name, _ in later.named_parameters(remove_duplicate=False)] == names
    model(images())
    assert model.encoder.masking is not model.masking


@pytest.mark.parametrize("loss_type", ["mse", "l1"])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_adversary_gets_the_errors_of_the_model_s_own_loss(loss_type, norm_pix_loss):
    model = build(masking=learned(), loss_type=loss_type, norm_pix_loss=norm_pix_loss)
    made, got = [], []
    model.masking.register_forward_hook(lambda module, args, out: made.append(out))
    total = model.masking.total_loss
    model.masking.total_loss = lambda *args: got.append(args) or total(*args)
    out = model(images())
    assert torch.equal(out.mask, made[0].mask)
    own, error, patch_mask = got[0]
    assert patch_mask is made[0]
    torch.testing.assert_close(own, masked_mean(error, made[0].mask))
    out.loss.backward()
    for name, weight in model.named_parameters():
        assert name == "encoder.vit.cls_token" or weight.grad is not None, name
    assert any(weight.grad.abs().sum() > 0 for weight in model.masking.parameters())


def test_visible_patches_alone_reach_the_encoder():
    model = build().eval()
    patch_mask = learned()(images())
    changed = images() + 100 * patch_mask.pixel_mask(32, 48) * torch.randn(images().shape)
    out, _ = model.masked_forward(changed, patch_mask)
    assert torch.equal(out.predictions, model.masked_forward(images(), patch_mask)[0].predictions)


def test_errors_under_a_mask_are_those_of_eval_and_leave_the_flags_as_they_were():
    model, patch_mask = build(masking=learned()).eval(), learned()(images())
    error = model.error_under(images(), patch_mask)
    assert torch.equal(error, model.error_under(images(), patch_mask))  # no drop path
    assert not (model.training)
    assert not (model.encoder.training)
    assert isinstance(model.encoder.masking, PatchMasking)
    gain = adversarial_gain(partial(model.error_under, images()), patch_mask)
    assert 0 < gain.item() < 10


def test_patches_without_data_may_hold_nan():
    model = build()
    holes = images()
    holes[:, :, :8, :8] = torch.nan
    patch_mask = learned(mask_ratio=0.25)(holes, valid=~holes.isnan().any(1))
    out, error = model.masked_forward(holes, patch_mask)
    assert out.loss.isfinite()
    assert error.isfinite().all()
    assert not patch_mask.mask[:, 0].any()


def test_what_it_cannot_follow_is_refused():
    for options, message in (
        (dict(mask_ratio=None, threshold=dict(type="mean")), "counts that differ.*'quantile'"),
        (dict(prediction_ratio=0.25), "left-out patches.* without prediction_ratio"),
        (dict(patch_size=16), r"patches of \(8, 8\) pixels"),
        (dict(reward="variance_normalised"), "norm_pix"),
        (dict(loss=dict(criterion="L1")), "criterion='L1'"),
    ):
        model = build(masking=learned(**options))
        with pytest.raises(ValueError, match=message):
            model(images())
    with pytest.raises(ValueError, match="no masked patch"):
        build().error_under(images(), PatchMask.from_mask(torch.zeros(3, 4, 6)))
    with pytest.raises(ValueError, match="expected a mask of"):
        build().error_under(images(), RandomMasking(0.5, 8)(torch.randn(3, 3, 48, 32)))


class MasksElsewhere(MAE):
    """A later version whose encoder no longer calls ``masking``."""

    def forward(self, images):
        with_its_own = PatchMasking(0.5)
        self.encoder.masking = None
        out = super().forward(images)
        out.mask = with_its_own(torch.zeros(len(images), 24, 1), 4, 6).mask
        return out


def test_a_model_that_masks_in_another_way_is_refused():
    class Wrong(TokensMaskedMixin, MasksElsewhere): ...

    model = build(Wrong, masking=learned())
    with pytest.raises(ValueError, match=r"expected to mask by encoder.masking\("):
        model(images())
