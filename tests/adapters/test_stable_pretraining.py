"""Masks for a model that hands its tokens to a masking module, on one of stable-pretraining's
interface.
"""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

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
        (32, 32), 8, embed_dim=16, depth=2, num_heads=2, num_classes=0, drop_path_rate=0.5
    )
    return kind(vit, **options)


def images(batch=3):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("loss_type", ["mse", "cosine", "smooth_l1"])
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
    assert error.requires_grad  # lambda_adv A reaches the autoencoder too
    out.loss.backward()
    for name, weight in model.named_parameters():
        assert name == "encoder.vit.cls_token" or weight.grad is not None, name
    assert any(weight.grad.abs().sum() > 0 for weight in model.masking.parameters())


def test_visible_patches_alone_reach_the_encoder():
    model = build().eval()
    patch_mask = learned()(images())
    changed = images() + 100 * patch_mask.pixel_mask(32, 32) * torch.randn(images().shape)
    out, _ = model.masked_forward(changed, patch_mask)
    assert torch.equal(out.predictions, model.masked_forward(images(), patch_mask)[0].predictions)


def test_errors_under_a_mask_are_those_of_eval_and_leave_the_flags_as_they_were():
    model, patch_mask = build(masking=learned()).eval(), learned()(images())
    error = model.error_under(images(), patch_mask)
    assert torch.equal(error, model.error_under(images(), patch_mask))  # no drop path
    assert not (model.training)
    assert not (model.encoder.training)
    assert "masking" not in vars(model.encoder)
    assert "_compute_loss" not in vars(model.loss_fn)
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
        (dict(mask_ratio=None, threshold=dict(type="mean")), "leaves the count free; .*'quantile'"),
        (dict(prediction_ratio=0.25), "left-out patches.* without prediction_ratio"),
        (dict(patch_size=16), r"patches of \(8, 8\) pixels"),
        (dict(reward="variance_normalised"), "norm_pix"),
        (dict(loss=dict(criterion="L1")), "criterion='L1'"),
    ):
        model = build(masking=learned(**options))
        with pytest.raises(ValueError, match=message):
            model(images())
    with pytest.raises(ValueError, match="criterion='L1'"):
        build(masking=learned(loss=dict(criterion="L1")), loss_type="cosine")(images())
    for name, value in (("reduction", "sum"), ("mask_only", False)):
        model = build(masking=learned())
        setattr(model.loss_fn, name, value)
        with pytest.raises(ValueError, match=f"mean over the masked patches.*{name}"):
            model(images())
    counts = torch.zeros(3, 4, 4)
    counts[0, 0], counts[1:, :2] = 1, 1
    with pytest.raises(ValueError, match=r"counts that differ.*'quantile'"):
        build().error_under(images(), PatchMask.from_mask(counts))
    with pytest.raises(ValueError, match="no image of this batch has one; leave the mask out"):
        build().error_under(images(), PatchMask.from_mask(torch.zeros(3, 4, 4)))
    with pytest.raises(ValueError, match="expected a mask of"):
        build().error_under(images(), RandomMasking(0.5, 8)(torch.randn(3, 3, 24, 32)))


@pytest.mark.parametrize("given", [dict(type="AdversarialMasking"), "random"])
def test_what_is_no_masking_is_refused(given):
    with pytest.raises(TypeError, match="masking expected a masking strategy, such as"):
        build(masking=given)


def test_what_is_no_mask_is_refused():
    with pytest.raises(TypeError, match=r"expected the PatchMask that .* got Tensor"):
        build().error_under(images(), torch.zeros(3, 16))


def test_the_library_s_own_forward_does_not_train_past_the_strategy():
    """As its recipes call it, by name: the encoder would mask at random in silence."""
    model = build(masking=learned())
    with pytest.raises(ValueError, match=r"call forward of the .* not MAE.forward"):
        MAE.forward(model, images())


def test_a_recomputed_encoder_does_not_draw_another_mask():
    model = build(masking=learned())
    forward = model.encoder.forward

    def recomputed(x):
        values = checkpoint(lambda x: tuple(vars(forward(x)).values()), x, use_reentrant=False)
        return SimpleNamespace(**dict(zip(("encoded", "mask", "ids_keep"), values, strict=True)))

    model.encoder.forward = recomputed
    with pytest.raises(ValueError, match="checkpoint the blocks or the whole model"):
        model(images()).loss.backward()


@pytest.mark.slow
def test_compiled_it_is_as_it_is_eagerly():
    torch._dynamo.reset()
    model = build(masking=learned(estimator=dict(type="straight_through", noise=0)))
    model.encoder.vit.eval()  # no drop path
    compiled, found = torch.compile(model, backend="aot_eager"), []
    for each in (model, compiled):
        model.zero_grad()
        loss = each(images()).loss
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class MasksElsewhere(MAE):
    """A later version whose encoder no longer calls ``masking``."""

    def forward(self, images):
        with_its_own = PatchMasking(0.5)
        self.encoder.masking = None
        out = super().forward(images)
        out.mask = with_its_own(torch.zeros(len(images), 16, 1), 4, 4).mask
        return out


class MeasuresTwice(MAE):
    """A later version whose loss has a second term of the same kind."""

    def forward(self, images):
        out = super().forward(images)
        out.loss = out.loss + self.loss_fn(out.predictions, images, out.mask)
        return out


class MeasuresElsewhere(MAE):
    """A later version whose loss is its own."""

    def forward(self, images):
        out = self.encoder(images)
        loss = out.encoded.square().mean()
        return SimpleNamespace(loss=loss, predictions=None, mask=out.mask)


@pytest.mark.parametrize("later", [MasksElsewhere, MeasuresTwice, MeasuresElsewhere])
def test_a_model_that_masks_or_measures_in_another_way_is_refused(later):
    class Wrong(TokensMaskedMixin, later): ...

    model = build(Wrong, masking=learned())
    with pytest.raises(ValueError, match=r"expected to mask by encoder.masking\("):
        model(images())


@pytest.mark.parametrize("loss_type", ["mse", "cosine", "smooth_l1"])
def test_with_the_library_itself(loss_type):
    library = pytest.importorskip("stable_pretraining.methods", reason="not among the extras")

    class Real(TokensMaskedMixin, library.MAE): ...

    small = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, loss_type=loss_type)
    vit = VisionTransformer(32, 8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    model, stock = (
        seeded(lambda k=kind: k(copy.deepcopy(vit), **small)) for kind in (Real, library.MAE)
    )
    one, other = seeded(model, images()), seeded(stock, images())
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(one.predictions, other.predictions)

    model = Real(vit, masking=learned(), **small)
    out = model(images())
    assert (out.mask.sum(1) == 8).all()
    out.loss.backward()
    assert any(weight.grad.abs().sum() > 0 for weight in model.masking.parameters())
    patch_mask = model.eval().masking(images())
    assert adversarial_gain(partial(model.error_under, images()), patch_mask).isfinite()
    with pytest.raises(ValueError, match=r"not MAE\.forward"):
        library.MAE.forward(model.train(), images())
