"""Methods whose backbone, or the model itself, makes the mask."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmpretrain.registry import MODELS

from amn_masking import PatchMask
from tests.helpers.small_mae import build
from tests.methods.matrix import LEARNED
from tests.methods.matrix import build as small
from tests.methods.small_methods import SMALL, stock_configs

HIVIT = dict(
    backbone=dict(type="MAEHiViT", arch="tiny", img_size=64, patch_size=16),
    neck=dict(
        type="MAEPretrainDecoder",
        num_patches=16,
        embed_dim=384,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    ),
    head=dict(
        type="MAEPretrainHead",
        norm_pix=True,
        loss=dict(type="PixelReconstructionLoss", criterion="L2"),
    ),
)


def test_hivit_sees_exactly_the_strategy_s_visible_patches():
    model = build(masking=dict(type="AdversarialMasking"), **HIVIT)
    images, seen = torch.randn(2, 3, 64, 64), {}
    made = model.masking.forward

    def keep(pictures, *more):
        seen["mask"] = made(pictures, *more)
        return seen["mask"]

    model.masking.forward = keep
    model.backbone.patch_embed.register_forward_hook(lambda m, a, out: seen.update(tokens=out))
    model.backbone.blocks[0].register_forward_pre_hook(lambda m, a: seen.update(entered=a[0]))
    losses = model.loss(images, [])
    losses["loss"].backward()
    mask = seen["mask"].mask
    assert seen["entered"].shape[1] == 4
    for row in range(2):
        ids = seen["mask"].ids_keep[row]
        assert not mask[row][ids].any()
        assert torch.equal(seen["entered"][row], seen["tokens"][row][ids])
    assert model.masking.network.convolutions[0].weight.grad.abs().max() > 0
    assert "masking_id" not in vars(model.backbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(backbone=dict(type="VisionTransformer"), masking=dict(type="RandomMasking")),
            "expected a MAEViT or MAEHiViT backbone, got VisionTransformer",
        ),
        (
            HIVIT | dict(masking=dict(type="AdversarialMasking", threshold=dict(type="mean"))),
            r"MAE with MAEHiViT needs the same number.*use threshold=dict\(type='quantile'\)",
        ),
        (HIVIT | dict(masking=dict(type="AdversarialMasking", gate=True)), "leave out gate=True"),
    ],
)
def test_a_strategy_that_the_backbone_cannot_take_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_mask_over_another_grid_is_refused_by_hivit():
    model = build(masking=dict(type="RandomMasking"), **HIVIT)
    with pytest.raises(
        ValueError, match=r"32 x 32 pixels have 2 x 2 patches .*MAEHiViT is built for 4 x 4; resize"
    ):
        model.loss(torch.randn(1, 3, 32, 32), [])


def test_milan_s_own_recipe_fails_in_stock_and_is_refused_with_the_remedy():
    cfg = Config.fromfile(stock_configs() / f"{SMALL['MILAN'][0]}.py").model
    cfg.target_generator = dict(type="TinyCLIP")
    stock = MODELS.build(cfg)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        stock.loss(torch.randn(1, 3, 224, 224), [])
    cfg.update(type="amn_masking.MILAN", masking=LEARNED)
    with pytest.raises(ValueError, match=r"768 features.*set model\.neck\.embed_dim=768"):
        MODELS.build(cfg)
    cfg.neck.embed_dim = 768
    MODELS.build(cfg)


@pytest.mark.parametrize("label", ["MAE", "MFF", "EVA"])
def test_rows_of_different_lengths_come_out_as_alone(label, photos):
    """The loss of a batch is that of its images one by one, weighted by their masked patches."""
    masking = dict(type="AdversarialMasking", threshold=dict(type="mean"), standardise=False)
    model, inputs, samples = small(label, photos, masking=masking)
    model.eval()
    patch_mask = model.make_mask(inputs)
    assert patch_mask.visible_counts is not None
    with torch.no_grad():
        error = model.error_under(patch_mask, inputs, samples)
        for i in range(len(inputs)):
            one = PatchMask.from_mask(patch_mask.mask[i : i + 1], patch_mask.grid)  # no padding
            alone = model.error_under(one, inputs[i : i + 1], samples[i : i + 1])
            masked = one.mask.bool()
            torch.testing.assert_close(
                alone[masked], error[i : i + 1][masked], atol=1e-5, rtol=1e-4
            )


def test_mixmim_has_one_mask_made_for_its_first_image(photos):
    model, inputs, _ = small("MixMIM", photos, masking=LEARNED)
    model.eval()
    patch_mask = model.make_mask(inputs)
    assert patch_mask.mask.shape == (1, 16)
    assert torch.equal(patch_mask.mask, model.make_mask(inputs[:1]).mask)


def test_spark_s_own_count_is_met(photos):
    model, inputs, _ = small("SparK", photos, masking=dict(type="RandomMasking"))
    visible = 16 - model.make_mask(inputs).mask.sum(1)
    assert (visible == model.len_keep).all()
