"""Rows of different lengths in one batch: each image comes out as it would alone, unpadded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, PatchMask
from amn_masking.estimators import ESTIMATORS
from amn_masking.patches import patchify
from tests.helpers import draws
from tests.helpers.autoencoder import Autoencoder
from tests.helpers.draws import ragged

GRID = (6, 6)


def test_plain_autoencoder_treats_each_image_as_alone():
    torch.manual_seed(0)
    model, images = Autoencoder(), torch.randn(5, 3, 24, 24)
    mask = ragged(5, 36)
    patch_mask = PatchMask.from_mask(mask, GRID)
    assert patch_mask.padding.any()
    latent, pred = model.encode(images, patch_mask), model(images, patch_mask)
    error = CombinedAdversarialLoss().error(pred, patchify(images, (4, 4)))
    for row in range(5):
        alone = PatchMask.from_mask(mask[row : row + 1], GRID)
        assert alone.padding is None
        image = images[row : row + 1]
        single = model.encode(image, alone)
        torch.testing.assert_close(latent[row, : single.shape[1]], single[0], atol=1e-5, rtol=0)
        single = model(image, alone)
        torch.testing.assert_close(pred[row], single[0], atol=1e-5, rtol=0)
        loss = CombinedAdversarialLoss(lambda_adv=0)(single, patchify(image, (4, 4)), alone)
        in_batch = (error[row] * mask[row]).sum() / mask[row].sum()
        torch.testing.assert_close(in_batch, loss, atol=1e-5, rtol=0)


def test_padding_gets_no_gradient_and_gives_none():
    torch.manual_seed(0)
    model, mask = Autoencoder(), ragged(3, 36)
    images = torch.randn(3, 3, 24, 24, requires_grad=True)
    model(images, PatchMask.from_mask(mask, GRID)).sum().backward()
    patches = patchify(images.grad, (4, 4))
    assert not patches[mask.bool()].any()
    assert (patches[~mask.bool()].abs().sum(-1) > 0).all()


@settings(max_examples=max(settings().max_examples // 5, 1))
@given(draws.seeds)
def test_mmpretrain_s_mae_treats_each_image_as_alone(seed):
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from tests.helpers.small_mae import build

    model = build(masking=dict(type="AdversarialMasking", threshold=dict(type="mean")))
    generator = torch.Generator().manual_seed(seed)
    images, mask = torch.randn(4, 3, 32, 32, generator=generator), ragged(4, 16, seed)

    def run(images, mask):
        patch_mask = PatchMask.from_mask(mask, (4, 4))
        with model.inject(patch_mask):
            latent, out, ids_restore = model.backbone(images)
            pred = model.neck(latent, ids_restore)
        target = model.head.construct_target(images)
        return latent, pred, (pred - target).square().mean(-1), out

    latent, pred, error, out = run(images, mask)
    assert torch.equal(out, mask)
    for row in range(4):
        one = slice(row, row + 1)
        single_latent, single_pred, _, _ = run(images[one], mask[one])
        count = single_latent.shape[1]
        torch.testing.assert_close(latent[row, :count], single_latent[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(pred[row], single_pred[0], atol=1e-5, rtol=0)
        loss = model.head.loss(single_pred, images[one], mask[one])
        in_batch = (error[row] * mask[row]).sum() / mask[row].sum()
        torch.testing.assert_close(in_batch, loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", ["constant", "mean", "tracking"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mmpretrain_s_mae_trains_with_free_counts(threshold, estimator):
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from tests.helpers.small_mae import build, step

    model = build(
        masking=dict(
            type="AdversarialMasking",
            threshold=dict(type=threshold),
            estimator=dict(type=estimator),
        )
    )
    before = model.backbone.layers[0].attn.scaled_dot_product_attention
    losses, gradients = step(model)
    assert losses["mask_ratio_min"] < losses["mask_ratio_max"]
    assert all(torch.isfinite(g).all() for g in gradients.values())
    assert gradients["masking.network.convolutions.0.weight"].abs().max() > 0
    for layer in model.backbone.layers:
        assert layer.attn.scaled_dot_product_attention is before
    assert not model.neck.decoder_embed._forward_hooks


def test_equal_counts_take_the_fast_path():
    """No attention mask where a free-count threshold happens to give equal counts."""
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from tests.helpers.small_mae import build, step

    threshold = dict(type="mean", ratio_range=(0.5, 0.5))
    model = build(masking=dict(type="AdversarialMasking", threshold=threshold))
    seen = []
    for layer in model.backbone.layers:
        made = layer.attn.scaled_dot_product_attention
        layer.attn.scaled_dot_product_attention = lambda *a, made=made, **k: (
            seen.append(k.get("attn_mask")) or made(*a, **k)
        )
    step(model)
    assert seen == [None, None]
    model.masking.threshold.ratio_range = (0.1, 0.9)
    step(model)
    assert all(mask is not None for mask in seen[2:])


def test_the_estimator_sees_errors_of_every_row():
    """Gradient reaches the logits of every image, whatever its count."""
    torch.manual_seed(0)
    masking = AdversarialMasking(patch_size=4, threshold=dict(type="mean"))
    images = torch.randn(4, 3, 24, 24)
    patch_mask = masking(images)
    logits = patch_mask.learned.logits
    logits.retain_grad()
    patch_mask.learned.objective(torch.rand(4, 36)).backward()
    assert (logits.grad.abs().sum(1) > 0).all()


def test_activation_checkpointing():
    """Refused where rows differ in length; bit-equal gradients where they do not."""
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

    from tests.helpers.small_mae import build, step

    layers = ["backbone.layers.0", "backbone.layers.1"]
    free = build(masking=dict(type="AdversarialMasking", threshold=dict(type="mean")))
    turn_on_activation_checkpointing(free, layers)
    with pytest.raises(ValueError, match=r"activation checkpointing is on.*type='quantile'"):
        step(free)
    plain, saving = (
        build(masking=dict(type="AdversarialMasking", random_share=0.0)) for _ in range(2)
    )
    turn_on_activation_checkpointing(saving, layers)
    (_, expected), (_, gradients) = step(plain), step(saving)
    assert expected.keys() == gradients.keys()
    for name in expected:
        assert torch.equal(expected[name], gradients[name]), name
