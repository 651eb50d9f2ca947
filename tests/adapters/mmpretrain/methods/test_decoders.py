"""Decoders that run on the seen and the predicted patches only; method by method: tests/methods."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmpretrain.models.necks import MAEPretrainDecoder

from tests.helpers.small_mae import build, step
from tests.methods.matrix import PART
from tests.methods.matrix import build as small


def test_gradients_through_checkpointed_blocks_are_those_without():
    masking = dict(type="AdversarialMasking", mask_ratio=0.75, prediction_ratio=0.25)
    model, saving = build(masking=masking), build(masking=masking)
    turn_on_activation_checkpointing(saving, ["neck.decoder_blocks.0", "neck.decoder_pred"])
    (losses, gradients), (others, saved) = step(model), step(saving)
    assert torch.equal(losses["loss"], others["loss"])
    assert gradients.keys() == saved.keys()
    assert all(torch.equal(gradient, saved[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("label", ["MAE", "MILAN"])
def test_a_neck_that_runs_again_as_a_whole_is_refused(label, photos):
    model, inputs, samples = small(label, photos, masking=PART)
    turn_on_activation_checkpointing(model, ["neck"])
    with pytest.raises(ValueError, match=r"checkpoint its blocks.*\['neck\.decoder_blocks\.0'"):
        model.loss(inputs, samples)
    model.masking.prediction_ratio = model.masking.mask_ratio
    assert torch.isfinite(model.loss(inputs, samples)["loss"])


@pytest.mark.parametrize("depth", [0, 1])
def test_a_decoder_of_another_form_is_refused(depth):
    neck = dict(type="MAEPretrainDecoder", num_patches=16, decoder_depth=0)
    if depth:
        neck = dict(type="LinearNeck", in_channels=4, out_channels=4)
    with pytest.raises(ValueError, match=rf"MAE has a {neck['type']}, which lacks the decoder_bl"):
        build(masking=PART, neck=neck)
    build(masking=dict(type="RandomMasking"), neck=neck)


def test_a_decoder_that_does_not_call_its_parts_is_refused():
    """It would predict what is left out too."""

    class Other(MAEPretrainDecoder):
        def forward(self, x, ids_restore):
            return x.new_zeros(*ids_restore.shape, 192) + 0 * x.sum()

    model = build(masking=dict(type="RandomMasking", mask_ratio=0.75, prediction_ratio=0.25))
    model.neck.__class__ = Other
    with pytest.raises(ValueError, match="did not call its TransformerEncoderLayer and its Linear"):
        step(model)


def test_mixmim_says_why_nothing_can_be_left_out(photos):
    with pytest.raises(ValueError, match="but MixMIM predicts every patch of every image"):
        small("MixMIM", photos, masking=PART)


def test_what_is_left_out_by_a_mask_of_one_s_own_is_refused_too(photos):
    model, inputs, samples = small("MixMIM", photos, masking=dict(type="RandomMasking"))
    part = small("MAE", photos, masking=PART)[0].make_mask(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="but MixMIM predicts every patch"):
        model.error_under(part, inputs, samples)


def test_nothing_is_left_on_the_decoder():
    model = build(masking=dict(type="RandomMasking", mask_ratio=0.75, prediction_ratio=0.25))
    step(model)
    assert not any("forward" in vars(module) for module in model.modules())
