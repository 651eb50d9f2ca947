"""transformers' ViTMAE under a strategy, without a Trainer."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

pytest.importorskip("transformers", reason="needs the extra 'huggingface'")

from amn_masking import PatchMask
from amn_masking.adapters.huggingface import masked_forward
from amn_masking.patches import masked_mean
from tests.helpers.small_vit_mae import adversarial, build, pictures


def test_every_count_is_the_mask_s_whatever_the_config_says():
    """196 patches: the ratio goes through a float, and all 195 counts come out."""
    model = build(image_size=28, patch_size=2).eval()
    images = pictures(2, size=(28, 28))
    for num_visible in range(1, 196):
        patch_mask = PatchMask.from_shuffle(torch.rand(2, 196).argsort(1), num_visible, (14, 14))
        with torch.no_grad():
            outputs = masked_forward(model, images, patch_mask).outputs
        assert torch.equal(outputs.mask, patch_mask.mask)
        assert torch.equal(outputs.ids_restore, patch_mask.ids_restore)
    assert model.config.mask_ratio == 0.75


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
def test_masked_error_is_the_model_s_own_loss(norm_pix_loss, size):
    model = build(norm_pix_loss=norm_pix_loss)
    done = masked_forward(
        model, pictures(size=size), adversarial(), interpolate_pos_encoding=size != (32, 32)
    )
    mean = masked_mean(done.error, done.patch_mask.mask)
    torch.testing.assert_close(mean, done.reconstruction, rtol=1e-6, atol=0)
    assert done.outputs.loss > done.reconstruction


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(patch_size=4),
            r"patch_size=\(4, 4\), but ViTMAE.*give the strategy patch_size=\(8, 8\)",
        ),
        (dict(threshold=dict(type="mean"), mask_ratio=None), "leaves the count free.*quantile"),
        (dict(gate=True), "leave out gate=True"),
    ],
)
def test_a_strategy_that_does_not_fit_is_refused(options, message):
    model = build()
    with pytest.raises(ValueError, match=message):
        masked_forward(model, pictures(), adversarial(**options))
    assert model.config.mask_ratio == 0.75
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_outputs_without_names_are_refused():
    model = build()
    with pytest.raises(ValueError, match="by name, got a tuple; leave out return_dict=False"):
        masked_forward(model, pictures(), adversarial(), return_dict=False)
    assert not model._forward_hooks


def test_grids_of_mask_images_and_model_are_one():
    """A transposed grid has as many patches."""
    model, wide = build(), pictures(size=(16, 64))
    with pytest.raises(
        ValueError, match=r"16 x 64 .* 2 x 8 .* ViTMAEForPreTraining is built for 4 x 4; .*32 x 32"
    ):
        masked_forward(model, wide, adversarial())
    transposed = PatchMask.from_shuffle(torch.rand(8, 16).argsort(1), 8, (8, 2))
    with pytest.raises(ValueError, match=r"expected .* = \(8, 2, 8\) .* got \(8, 8, 2\)"):
        masked_forward(model, wide, transposed, interpolate_pos_encoding=True)
    ragged = PatchMask.from_mask(torch.arange(16) < torch.arange(1, 9)[:, None], (4, 4))
    with pytest.raises(ValueError, match=r"those of this mask differ.*type='quantile'"):
        masked_forward(model, pictures(), ragged)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("of_pixels", [False, True])
def test_patches_without_data_do_not_matter(norm_pix_loss, of_pixels):
    """NaN in them gives the same masks, loss and gradients as any other number."""
    holes = torch.zeros(8, 4, 4, dtype=torch.bool)
    holes[:, 0, 1] = holes[0, 2] = True
    pixels = holes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    valid = ~pixels if of_pixels else ~holes.flatten(1)
    got = []
    for filler in (float("nan"), 7.0):
        model = build(adversarial(), norm_pix_loss=norm_pix_loss)
        torch.manual_seed(3)
        images = pictures().masked_fill(pixels[:, None], filler)
        done = masked_forward(model, images, model.masking, valid=valid)
        done.outputs.loss.backward()
        mask = done.patch_mask.mask
        assert not (mask * holes.flatten(1)).any()
        mean = masked_mean(done.error, mask)
        torch.testing.assert_close(done.reconstruction, mean, rtol=1e-6, atol=0)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        got.append([done.outputs.loss.detach(), mask, *gradients])
    for one, other in zip(*got, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_where_patches_are_left_out(use_reentrant):
    """As the Trainer switches it on."""
    got = []
    for checkpointing in (False, True):
        model = build(masking := adversarial(prediction_ratio=0.25))
        if checkpointing:
            model.gradient_checkpointing_enable(dict(use_reentrant=use_reentrant))
        torch.manual_seed(3)
        done = masked_forward(model, pictures(), masking)
        done.outputs.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        got.append([done.outputs.loss.detach(), *gradients])
    for one, other in zip(*got, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layers", [0, 2])
def test_what_is_left_out_has_no_prediction_and_is_not_in_the_mask(layers):
    model = build(decoder_num_hidden_layers=layers)
    done = masked_forward(model, pictures(), adversarial(prediction_ratio=0.25))
    patch_mask, outputs = done.patch_mask, done.outputs
    assert torch.equal(outputs.mask, patch_mask.predicted)
    assert torch.equal(outputs.ids_restore, patch_mask.ids_restore)
    assert not outputs.logits[(patch_mask.mask - patch_mask.predicted).bool()].any()
    assert outputs.logits[patch_mask.mask == 0].any(-1).all()


@pytest.mark.slow
def test_compiled_with_batches_of_several_sizes():
    """No graph break where sizes become symbols, which would go back to eager without a word."""
    torch._dynamo.reset()
    counters.clear()
    steady = dict(type="straight_through", noise=0)
    masking = adversarial(estimator=steady, prediction_ratio=0.25)
    model = build(masking)
    compiled = torch.compile(model, backend="aot_eager")
    for batch in (4, 2, 3, 5):
        got = []
        for each in (model, compiled):
            model.zero_grad()
            torch.manual_seed(3)  # for what is left out
            done = masked_forward(each, pictures(batch), masking)
            done.outputs.loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            got.append([done.outputs.loss.detach(), done.patch_mask.mask, *gradients])
        for one, other in zip(*got, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not counters["graph_break"]
    assert counters["frames"]["ok"] == counters["frames"]["total"]
