"""transformers' Hiera under a strategy; most laws are the contract's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra 'huggingface'")

from amn_masking import PatchMask, RandomMasking
from amn_masking.adapters.huggingface import masked_forward
from amn_masking.patches import masked_mean
from tests.adapters.huggingface.test_trainer import FIRST, train, weights
from tests.helpers.small_hiera import OVERLAPPING, SIZE, build, pictures
from tests.helpers.small_vit_mae import adversarial


def random_mask(num_visible=6, num_predicted=None):
    noise = torch.rand(8, 15, generator=torch.Generator().manual_seed(6))
    return PatchMask.from_shuffle(
        noise.argsort(1), num_visible, (3, 5), num_predicted=num_predicted
    )


@pytest.mark.parametrize("normalised", [False, True])
def test_a_mask_s_pass_is_the_stock_model_s_bit_for_bit(normalised):
    """Loss, predictions and every gradient, from the same noise at the config's ratio."""
    got = []
    for stock in (False, True):
        model = build(normalize_pixel_loss=normalised, mask_ratio=0.6, **OVERLAPPING)
        torch.manual_seed(3)
        if stock:
            outputs = model(pictures(), noise=torch.rand(8, 15))
        else:
            done = masked_forward(model, pictures(), RandomMasking(0.6, 8))
            outputs = done.outputs
            shown = done.patch_mask.pixel_mask(6, 10).flatten(1) == 0
            assert torch.equal(outputs.bool_masked_pos, shown)
        outputs.loss.backward()
        got.append([outputs.loss, outputs.logits, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *got))


def test_every_count_is_the_mask_s_whatever_the_config_says():
    model = build(num_query_pool=2).eval()  # a unit is one part
    for num_visible in range(1, 15):
        patch_mask = random_mask(num_visible)
        with torch.no_grad():
            outputs = masked_forward(model, pictures(), patch_mask).outputs
        assert torch.equal(outputs.bool_masked_pos, patch_mask.mask == 0)
        assert torch.equal(outputs.ids_restore, patch_mask.ids_restore)
    assert model.hiera.embeddings.patch_embeddings.mask_ratio == 0.6


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_error_is_that_of_a_slow_reference(normalised, left_out):
    """Unit by unit, the mean over its 2 x 2 parts of 4 x 4 pixels, channels first."""
    model = build(normalize_pixel_loss=normalised, **OVERLAPPING)
    patch_mask = random_mask(num_predicted=4 if left_out else None)
    done = masked_forward(model, pictures(), patch_mask)
    for image in range(8):
        for unit in patch_mask.predicted[image].nonzero().flatten().tolist():
            errors = []
            for part in range(4):
                row, column = 2 * (unit // 5) + part // 2, 2 * (unit % 5) + part % 2
                pixels = pictures()[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                target = pixels.flatten()
                if normalised:
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                errors.append((done.outputs.logits[image, 10 * row + column] - target).square())
            expected = torch.cat(errors).mean()
            torch.testing.assert_close(done.error[image, unit], expected, rtol=1e-4, atol=1e-6)
    mean = masked_mean(done.error, patch_mask.predicted)
    torch.testing.assert_close(mean, done.reconstruction, rtol=1e-6, atol=0)
    predicted = patch_mask.predicted.reshape(8, 3, 5).repeat_interleave(2, 1)
    predicted = predicted.repeat_interleave(2, 2).flatten(1).bool()
    assert torch.equal(~done.outputs.bool_masked_pos, predicted)
    if left_out:
        gone = (patch_mask.mask - patch_mask.predicted).reshape(8, 3, 5)
        gone = gone.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1).bool()
        assert not done.outputs.logits[gone].any()


@pytest.mark.parametrize("left_out", [False, True])
def test_what_is_masked_is_not_seen(left_out):
    """Not by an embedding that overlaps either: hidden pixels are 0 to it."""
    patch_mask = random_mask(num_predicted=4 if left_out else None)
    hidden, other = patch_mask.pixel_mask(*SIZE), pictures(seed=4)
    model = build(**OVERLAPPING)
    one, two, shown = (
        masked_forward(model, images, patch_mask).outputs.logits
        for images in (pictures(), pictures() + hidden * other, pictures() + (1 - hidden) * other)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, shown)


@pytest.mark.parametrize("of_pixels", [False, True])
def test_units_without_data_do_not_matter(of_pixels):
    """NaN in them gives the same masks, loss and gradients as any other number."""
    holes = torch.zeros(8, 3, 5, dtype=torch.bool)
    holes[:, 0, 1] = holes[0, 2] = True
    pixels = holes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    valid = ~pixels if of_pixels else ~holes.flatten(1)
    got = []
    for filler in (float("nan"), 7.0):
        model, masking = build(**OVERLAPPING), adversarial()
        torch.manual_seed(3)
        images = pictures().masked_fill(pixels[:, None], filler)
        done = masked_forward(model, images, masking, valid=valid)
        done.outputs.loss.backward()
        assert not (done.patch_mask.mask * holes.flatten(1)).any()
        gradients = [p.grad for p in [*model.parameters(), *masking.parameters()]]
        got.append([done.outputs.loss.detach(), done.patch_mask.mask, *gradients])
    for one, other in zip(*got, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_where_units_are_left_out(use_reentrant):
    got = []
    for checkpointing in (False, True):
        model = build(masking := adversarial(prediction_ratio=0.25))
        if checkpointing:
            model.gradient_checkpointing_enable(dict(use_reentrant=use_reentrant))
        torch.manual_seed(3)
        done = masked_forward(model, pictures(), masking)
        done.outputs.loss.backward()
        got.append([done.outputs.loss.detach(), *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *got))


def test_what_does_not_fit_is_refused():
    model, mask = build(), random_mask()
    transposed = PatchMask.from_shuffle(mask.ids_shuffle, 6, (5, 3))
    ragged = PatchMask.from_mask(torch.arange(15) < torch.arange(1, 9)[:, None], (3, 5))
    free = dict(threshold=dict(type="mean"), mask_ratio=None)
    any_size = dict(interpolate_pos_encoding=True)
    noise = dict(noise=torch.rand(8, 15))
    wide = pictures(size=(24, 48))
    cases = [
        (pictures(), adversarial(patch_size=4), {}, r"patch_size=\(4, 4\), but Hiera.*\(8, 8\)"),
        (pictures(), adversarial(**free), {}, "leaves the count free.*quantile"),
        (pictures(), ragged, {}, r"those of this mask differ.*type='quantile'"),
        (pictures(), adversarial(gate=True), {}, "leave out gate=True"),
        (pictures(), adversarial(reward="variance_normalised"), {}, "switch norm_pix off"),
        (pictures(), adversarial(loss=dict(criterion="L1")), {}, "says criterion='L1', but Hiera"),
        (pictures(), transposed, {}, r"expected .* = \(8, 3, 5\) .* got \(8, 5, 3\)"),
        (pictures(), adversarial(), noise, "noise expected from the strategy alone"),
        (wide, adversarial(), any_size, "3 x 6 patches .* built for 3 x 5"),
    ]  # fmt: skip
    for images, masking, options, message in cases:
        with pytest.raises(ValueError, match=message):
            masked_forward(model, images, masking, **options)
        assert model.hiera.embeddings.patch_embeddings.mask_ratio == 0.6
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


def test_trainer_trains_both_networks_and_evaluates_the_reconstruction(tmp_path):
    model = build(adversarial())
    before = weights(model)
    data = [{"pixel_values": image} for image in pictures()]
    trainer = train(tmp_path, model, data=data, label_names=["pixel_values"], max_steps=2)
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert 0 < entry["reconstruction"] < entry["loss"]
    assert entry["adversarial_gain"] > 0
    for name in (FIRST, "decoder.mask_token", "hiera.embeddings.position_embeddings"):
        assert not torch.equal(before[name], weights(model)[name])
    with torch.no_grad():
        expected = masked_forward(model.eval(), pictures(), model.masking).reconstruction
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
