"""A mask that was put in a method's way was used, or the step says that it was not."""

from __future__ import annotations

import pytest

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmpretrain.models import selfsup
from mmpretrain.registry import MODELS

from amn_masking.adapters.overrides import overridden
from tests.helpers.small_mae import build, config, step
from tests.methods.matrix import LEARNED
from tests.methods.matrix import build as build_method

MASKING = dict(type="AdversarialMasking", mask_ratio=0.25)
# What makes each method's mask in mmpretrain 1.2 and 1.3: a later one may rename it.
MAKERS = {
    "MAE": (selfsup.MAEViT, "random_masking"),
    "MFF": (selfsup.MAEViT, "random_masking"),
    "EVA": (selfsup.MAEViT, "random_masking"),
    "MAE (HiViT)": (selfsup.MAEHiViT, "masking_id"),
    "MILAN": (selfsup.MILANViT, "attention_masking"),
    "iTPN (pixel)": (selfsup.iTPNHiViT, "masking_id"),
    "SparK": (selfsup.SparK, "mask"),
    "MixMIM": (selfsup.MixMIMPretrainTransformer, "random_masking"),
}
FROM_SAMPLES = ("SimMIM", "MaskFeat", "BEiT v1", "BEiT v2", "CAE", "iTPN (clip)")


@MODELS.register_module()
class DropsByAnotherName(selfsup.MAEViT):
    """A fork that drops tokens by a method of another name; the stock one is left over."""

    def drop_tokens(self, x, mask_ratio):
        return selfsup.MAEViT.random_masking(self, x, mask_ratio)

    def forward(self, x, mask=True):
        with overridden(self, random_masking=self.drop_tokens):
            return super().forward(x, mask)


@MODELS.register_module()
class AsksAndForgets(selfsup.MAEViT):
    """It asks for the mask, and then uses and returns another one."""

    def forward(self, x, mask=True):
        asked = self.random_masking

        def forgets(x, mask_ratio):
            asked(x, mask_ratio)
            return selfsup.MAEViT.random_masking(self, x, 0.5)

        with overridden(self, random_masking=forgets):
            return super().forward(x, mask)


@pytest.mark.parametrize("kind", ["AdversarialMasking", "RandomMasking"])
@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("DropsByAnotherName", r"DropsByAnotherName to make its mask by random_masking.*did not"),
        ("AsksAndForgets", r"AsksAndForgets was given a mask of .* that hides 0\.25.*used one"),
    ],
)
def test_a_backbone_that_masks_in_its_own_way_is_refused(kind, backbone, message):
    changes = dict(backbone=config()["backbone"] | dict(type=backbone))
    step(build(masking=None, **changes))  # as a stock method it runs
    model = build(masking=MASKING | dict(type=kind), **changes)
    with pytest.raises(ValueError, match=message):
        step(model)


@pytest.mark.parametrize("label", MAKERS)
def test_a_method_that_lost_what_makes_its_mask_is_refused(label, photos, monkeypatch):
    owner, name = MAKERS[label]
    model, inputs, samples = build_method(label, photos, masking=LEARNED)
    monkeypatch.setattr(owner, f"{name}_renamed", getattr(owner, name), raising=False)
    monkeypatch.delattr(owner, name)
    if label == "iTPN (pixel)":
        monkeypatch.delattr(selfsup.MAEHiViT, name, raising=False)
    with pytest.raises(ValueError, match=f"make its mask by {name}.* has none"):
        model.loss(inputs, samples)


def test_cae_s_neck_keeps_the_count_that_it_is_given(photos):
    model, inputs, samples = build_method("CAE", photos, masking=LEARNED)
    del model.neck.mask_token_num
    with pytest.raises(ValueError, match=r"make its mask by mask_token_num.* has none"):
        model.loss(inputs, samples)


@pytest.mark.parametrize("label", FROM_SAMPLES)
def test_samples_whose_mask_is_not_asked_for_are_refused(label, photos, monkeypatch):
    # As many masked patches as the pipeline's: CAE's neck fails at another count by itself.
    masking = LEARNED | dict(mask_ratio=0.375)
    model, inputs, samples = build_method(label, photos, masking=masking)
    model.proved = True  # without the comparison, as in every later step
    cls = selfsup_class(model)
    loss = cls.loss
    # As if the method took its mask from somewhere else: here from the pipeline's own samples.
    monkeypatch.setattr(
        cls, "loss", lambda self, inputs, _, **kw: loss(self, inputs, samples, **kw)
    )
    with pytest.raises(ValueError, match=r"by the field 'mask' of the data samples.* left it"):
        model.loss(inputs, samples)


def selfsup_class(model):
    return next(cls for cls in type(model).__mro__ if cls.__module__.startswith("mmpretrain."))


@pytest.mark.parametrize("label", FROM_SAMPLES)
def test_an_encoder_that_gets_another_mask_is_refused(label, photos, monkeypatch):
    model, inputs, samples = build_method(label, photos, masking=LEARNED)
    cls = selfsup_class(model)
    loss = cls.loss

    def other(self, inputs, data_samples, **kwargs):
        for sample in data_samples:
            mask = sample.mask
            sample.set_mask(mask.flip(-1) if label == "CAE" else 1 - mask)
        return loss(self, inputs, data_samples, **kwargs)

    monkeypatch.setattr(cls, "loss", other)
    with pytest.raises(ValueError, match=r"was given a mask of .* and used one of"):
        model.loss(inputs, samples)


def test_the_comparison_is_for_the_first_step():
    model = build(masking=MASKING)
    assert not model.proved
    step(model)
    assert model.proved
    assert not model.backbone._forward_hooks
