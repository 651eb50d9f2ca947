"""Models of transformers that take bool_masked_pos; most laws are the contract's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra 'huggingface'")

from transformers import BeitConfig, BeitForMaskedImageModeling, Trainer

from amn_masking import PatchMask, RandomMasking
from amn_masking.adapters.huggingface import masked_forward
from amn_masking.patches import masked_mean
from tests.adapters.huggingface.test_trainer import FIRST, assert_equal, train, weights
from tests.contract.targets.target import seen_by
from tests.helpers.masked_image_models import MODELS, build
from tests.helpers.small_vit_mae import adversarial, pictures


def random_mask(batch=8, masked=7):
    noise = torch.rand(batch, 16, generator=torch.Generator().manual_seed(6))
    return PatchMask.from_shuffle(noise.argsort(1), 16 - masked, (4, 4))


def in_its_patches(model, patch_mask):
    """The mask over the model's own patches, one after the other."""
    own = model.config.patch_size
    rows = range(0, 32, own)
    pixels = patch_mask.pixel_mask(32, 32)[:, 0]
    return torch.stack([pixels[:, y, x] for y in rows for x in rows], 1).bool()


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_s_pass_is_the_stock_model_s_bit_for_bit(name):
    """Loss, reconstruction and every gradient, under a mask that is RandomMasking's."""
    got = []
    for stock in (False, True):
        model = build(name)
        torch.manual_seed(3)
        patch_mask = RandomMasking(0.6, 8)(pictures())
        if stock:
            outputs = model(pictures(), bool_masked_pos=in_its_patches(model, patch_mask))
        else:
            torch.manual_seed(3)
            done = masked_forward(model, pictures(), RandomMasking(0.6, 8))
            assert torch.equal(done.patch_mask.mask, patch_mask.mask)
            outputs = done.outputs
        outputs.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        got.append([outputs.loss, outputs.reconstruction, *gradients])
    assert len(got[0]) == len(got[1]) > 10
    assert all(map(torch.equal, *got))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_masked_is_not_seen(name):
    """Other pixels in a masked patch, predicted or left out, change no prediction."""
    patch_mask = random_mask()
    patch_mask.num_predicted = 3
    hidden = patch_mask.pixel_mask(32, 32)
    model, images = build(name), pictures()
    one = masked_forward(model, images, patch_mask)
    other = masked_forward(model, images + hidden * pictures(seed=4), patch_mask)
    assert torch.equal(one.outputs.reconstruction, other.outputs.reconstruction)
    shown = masked_forward(model, images + (1 - hidden) * pictures(seed=4), patch_mask)
    assert not torch.equal(one.outputs.reconstruction, shown.outputs.reconstruction)
    torch.testing.assert_close(one.reconstruction, masked_mean(one.error, patch_mask.predicted))
    assert one.reconstruction != masked_mean(one.error, patch_mask.mask)


def test_a_model_whose_embedding_overlaps_is_refused():
    """Its visible patches see the pixels of their masked neighbours."""
    model, images = build("FocalNet", use_conv_embed=True), pictures()
    patch_mask = random_mask()
    other = images + patch_mask.pixel_mask(32, 32)
    mask = in_its_patches(model, patch_mask)
    one, two = (model(x, bool_masked_pos=mask).reconstruction for x in (images, other))
    assert not torch.equal(one, two)
    for masking in (patch_mask, adversarial()):
        with pytest.raises(ValueError, match=r"hold pixels of .*use_conv_embed=False"):
            masked_forward(model, images, masking)


@pytest.mark.parametrize("size", [4, 8, 16, (4, 16)])
def test_a_patch_of_the_mask_may_be_several_of_the_model_s(size):
    model = build("Swin", masking := adversarial(patch_size=size))
    with seen_by(model.swin.embeddings, output=True) as tokens:
        done = masked_forward(model, pictures(), masking)
        stock = model(pictures(), bool_masked_pos=in_its_patches(model, done.patch_mask))
    assert torch.equal(tokens[0][0], tokens[1][0])
    assert torch.equal(stock.loss, done.reconstruction)
    mean = masked_mean(done.error, done.patch_mask.mask)
    torch.testing.assert_close(mean, done.reconstruction, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["DeiT", "Swinv2"])
def test_free_counts_train_both_networks(name):
    model = build(name, masking := adversarial(threshold=dict(type="mean"), mask_ratio=None))
    done = masked_forward(model, pictures(), masking)
    assert done.patch_mask.visible_counts is not None
    mean = masked_mean(done.error, done.patch_mask.mask)
    torch.testing.assert_close(mean, done.reconstruction, rtol=1e-6, atol=0)
    done.outputs.loss.backward()
    for module in (model.decoder, model.base_model.embeddings):
        assert all(p.grad.any() for p in module.parameters())
    assert any(p.grad.any() for p in masking.network.parameters())


@pytest.mark.parametrize("of_pixels", [False, True])
def test_patches_without_data_do_not_matter(of_pixels):
    """NaN in them gives the same masks, loss and gradients as any other number."""
    holes = torch.zeros(8, 4, 4, dtype=torch.bool)
    holes[:, 0, 1] = holes[0, 2] = True
    pixels = holes.repeat_interleave(8, 1).repeat_interleave(8, 2)
    valid = ~pixels if of_pixels else ~holes.flatten(1)
    got = []
    for filler in (float("nan"), 7.0):
        model = build("Swin", adversarial())
        torch.manual_seed(3)
        images = pictures().masked_fill(pixels[:, None], filler)
        done = masked_forward(model, images, model.masking, valid=valid)
        done.outputs.loss.backward()
        assert not (done.patch_mask.mask * holes.flatten(1)).any()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        got.append([done.outputs.loss.detach(), done.patch_mask.mask, *gradients])
    for one, other in zip(*got, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


def test_what_does_not_fit_is_refused():
    vit, swin, images = build("ViT"), build("Swin"), pictures()
    mask = random_mask()
    transposed = PatchMask.from_shuffle(torch.rand(8, 16).argsort(1), 8, (8, 2))
    vit_mask = dict(bool_masked_pos=mask.mask.bool())
    turned = build("ViT", image_size=(32, 64))
    any_size, wide = dict(interpolate_pos_encoding=True), pictures(size=(16, 64))
    cases = [
        (vit, images, adversarial(patch_size=4), {}, r"patch_size=\(4, 4\), but ViTFor.* 8 x 8"),
        (swin, images, adversarial(patch_size=6), {}, r"patches of 4 x 4 .*a multiple of it"),
        (vit, images, adversarial(gate=True), {}, "leave out gate=True"),
        (vit, images, adversarial(loss=dict(channel=3)), {}, "says channel=3, but ViTFor"),
        (vit, images, adversarial(loss=dict(criterion="L2")), {}, "says criterion='L2', but ViTF"),
        (vit, images, transposed, {}, r"expected .* = \(8, 4, 4\) .* got \(8, 8, 2\)"),
        (vit, images[:3], mask, {}, r"expected .* = \(3, 4, 4\) .* got \(8, 4, 4\)"),
        (swin, pictures(size=(64, 64)), adversarial(), {}, "is built for 4 x 4; .*32 x 32"),
        (swin, wide, adversarial(), any_size, "2 x 8 .* is built for 4 x 4"),
        (vit, images, adversarial(), vit_mask, "bool_masked_pos expected from the strategy"),
        (turned, images, adversarial(), {}, r"an integer image_size .* got \[?\(?32, 64"),
        (build("Swin", encoder_stride=16), images, mask, {}, "build it with encoder_stride=8"),
    ]  # fmt: skip
    for model, pixels, masking, options, message in cases:
        with pytest.raises(ValueError, match=message):
            masked_forward(model, pixels, masking, **options)
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


@pytest.mark.parametrize("loss", [dict(criterion="L1"), dict(lambda_adv=0.1), None])
def test_a_criterion_that_is_the_model_s_or_that_nobody_said_is_followed(loss):
    done = masked_forward(build("ViT"), pictures(), adversarial(loss=loss))
    assert done.outputs.loss > done.reconstruction


def test_models_with_neither_argument_are_refused():
    small = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    beit = BeitForMaskedImageModeling(BeitConfig(image_size=32, patch_size=8, **small))
    for model in (build("ViT").vit, beit, torch.nn.Linear(2, 2)):
        with pytest.raises(
            TypeError, match=rf"noise=.* bool_masked_pos=.* got {type(model).__name__}"
        ):
            masked_forward(model, pictures(), adversarial())


def test_trainer_trains_both_networks_and_evaluates_the_reconstruction(tmp_path):
    model = build("Swin", adversarial())
    before = weights(model)
    trainer = train(tmp_path, model, label_names=["pixel_values"], max_steps=2)
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert 0 < entry["reconstruction"] < entry["loss"]
    assert entry["adversarial_gain"] > 0
    assert entry["mask_ratio"] == 0.5
    for name in (FIRST, "swin.embeddings.mask_token", "decoder.0.weight"):
        assert not torch.equal(before[name], weights(model)[name])
    with torch.no_grad():
        expected = masked_forward(model.eval(), pictures(), model.masking).reconstruction
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_without_a_strategy_the_trainer_says_what_to_assign(tmp_path):
    with pytest.raises(ValueError, match=r"model\.masking = AdversarialMasking"):
        train(tmp_path, build("ViT"))


def test_a_random_mask_s_training_is_the_stock_trainer_s(tmp_path):
    """Where the stock one gets the same masks with its data."""
    patch_mask = random_mask()

    class Prepared(RandomMasking):
        """The mask that belongs to an image, found by its first pixel."""

        def forward(self, images, generator=None, valid=None):
            first = pictures()[:, 0, 0, 0]
            found = (images[:, 0, 0, 0, None] == first).float().argmax(1)
            return patch_mask.take(found)

    stock, masked = build("ViT"), build("ViT", Prepared(0.5, 8))
    bool_masks = in_its_patches(stock, patch_mask)
    data = [
        dict(pixel_values=image, bool_masked_pos=mask)
        for image, mask in zip(pictures(), bool_masks, strict=True)
    ]
    train(tmp_path, stock, Trainer, data=data)
    train(tmp_path, masked)
    assert_equal(weights(stock), weights(masked))


@pytest.mark.parametrize("name", ["ViT", "Swin"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, name):
    options = dict(max_steps=3, save_strategy="steps", save_steps=2, logging_steps=3)
    whole, resumed = build(name, adversarial()), build(name, adversarial())
    train(tmp_path, whole, **options)
    torch.manual_seed(9)
    train(tmp_path, resumed, resume=str(tmp_path / "checkpoint-2"), **options)
    assert_equal(weights(whole), weights(resumed))
