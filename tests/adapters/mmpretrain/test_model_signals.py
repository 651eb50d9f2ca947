"""Every strategy by its config in mmpretrain's MAE; those that ask the method itself."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from amn_masking import strategies
from amn_masking.adapters.mmpretrain.model_signals import class_attention
from amn_masking.patches import masked_mean
from tests.helpers import small_mae
from tests.helpers.runner import train

CONFIGS = {
    "RandomMasking": dict(),
    "AdversarialMasking": dict(random_share=0.0),
    "BlockMasking": dict(min_patches=4),
    "ColorNoiseMasking": dict(color="blue"),
    "HardPatchMasking": dict(),
    "AttentionMasking": dict(hint_share=0.2),
    "OracleMasking": dict(draws=2),
    "RandomRatioMasking": dict(masking=dict(type="BlockMasking", min_patches=2)),
    "ShuffledMasking": dict(masking=dict(type="AdversarialMasking", random_share=0.0)),
}


def model_with(kind, **more):
    return small_mae.build(masking=dict(type=kind, **CONFIGS[kind], **more))


def test_every_strategy_of_images_is_here():
    assert set(CONFIGS) == set(strategies.__all__) - {"MaskingStrategy", "TubeMasking"}


def test_tubes_are_of_clips_and_refused():
    inner = dict(type="RandomMasking", patch_size=(16, 8, 8))
    with pytest.raises(ValueError, match=r"\(16, 8, 8\), but MAE works on patches of \(8, 8\)"):
        small_mae.build(masking=dict(type="TubeMasking", masking=inner))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_step_masks_as_the_strategy_says(kind):
    model = model_with(kind)
    seen = {}
    model.masking.register_forward_hook(lambda m, args, out: seen.update(mask=out))
    model.backbone.register_forward_hook(lambda m, args, out: seen.update(encoder=out))
    losses, gradients = small_mae.step(model)
    assert all(torch.isfinite(value) for value in losses.values())
    latent, mask, ids_restore = seen["encoder"]
    assert torch.equal(mask, seen["mask"].mask)
    assert torch.equal(ids_restore, seen["mask"].ids_restore)
    assert latent.shape[1] == 1 + seen["mask"].num_visible
    if kind != "RandomRatioMasking":
        assert seen["mask"].num_visible == 4  # the method's own ratio
    learned = [name for name in gradients if name.startswith("masking")]
    assert bool(learned) == (kind in ("AdversarialMasking", "HardPatchMasking", "ShuffledMasking"))
    if kind != "HardPatchMasking":  # begins at random; the order is learned from there all the same
        assert all(gradients[name].any() for name in learned)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_one_epoch_trains(kind, photos_config):
    masking = dict(_delete_=True, type=kind, **copy.deepcopy(CONFIGS[kind]))
    changes = {"model.masking": masking, "train_cfg.max_epochs": 1}
    runner = train(
        photos_config, custom_hooks=[dict(type="MaskingMetersHook", interval=2)], **changes
    )
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)


def test_the_class_token_s_attention_is_that_of_a_slow_reference():
    model = model_with("AttentionMasking").eval()
    images = torch.randn(2, 3, 32, 32)
    layer = model.backbone.layers[-1]
    with torch.no_grad():
        tokens = model.backbone.patch_embed(images)[0]
        tokens = tokens + model.backbone.pos_embed[:, 1:]
        token = (model.backbone.cls_token + model.backbone.pos_embed[:, :1]).expand(2, -1, -1)
        tokens = torch.cat([token, tokens], 1)
        for before in model.backbone.layers[:-1]:
            tokens = before(tokens)
        query, key, _ = layer.attn.qkv(layer.ln1(tokens)).chunk(3, -1)
        expected = torch.zeros(2, 16)
        heads, size = layer.attn.num_heads, query.shape[-1] // layer.attn.num_heads
        for image in range(2):
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = key[image, :, part] @ query[image, 0, part] / size**0.5
                expected[image] += scores.softmax(0)[1:] / heads
    found = class_attention(model.backbone, images)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not layer.attn._forward_pre_hooks


def test_the_oracle_masks_what_the_model_reconstructs_worst():
    model = model_with("OracleMasking")
    model.masking.draws = 64
    images = torch.randn(3, 3, 32, 32) * torch.linspace(0.2, 3, 32)
    error = model.masking.error(images)
    assert error.shape == (3, 16)
    assert (error > 0).all()
    torch.manual_seed(0)
    learned = model.masking(images)
    random = strategies.RandomMasking(0.75, 8)

    def mean_error(mask):
        return masked_mean(model.error_under(mask, images, []), mask.mask)

    hard = mean_error(learned)
    easy = torch.stack([mean_error(random(images)) for _ in range(8)]).max()
    assert hard > easy


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.375, 0.75])
def test_the_oracle_measures_every_patch_at_every_ratio(ratio, monkeypatch):
    """With an error that is each patch's own, its masks are the truly hardest patches."""
    model = model_with("OracleMasking", mask_ratio=ratio)
    images = torch.randn(3, 3, 32, 32)
    known = torch.rand(3, 16)
    counts = []
    monkeypatch.setattr(model, "patch_error", lambda patch_mask, calls: known)
    plain = model.masked_loss
    monkeypatch.setattr(
        model, "masked_loss", lambda mask, *rest: counts.append(mask.mask) or plain(mask, *rest)
    )
    patch_mask = model.masking(images)
    hidden = torch.stack(counts)
    assert (hidden.sum(0) > 0).all()
    assert (hidden.sum(2) == patch_mask.mask.sum(1)).all()
    assert len(hidden) >= model.masking.draws
    num_masked = int(patch_mask.mask[0].sum())
    hardest = torch.zeros(3, 16).scatter(1, known.topk(num_masked, 1).indices, 1.0)
    assert torch.equal(patch_mask.mask, hardest)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("kind", ["AttentionMasking", "OracleMasking"])
def test_in_eval_masks_are_the_same_in_every_call(kind, shuffled):
    masking = dict(type=kind, mask_ratio=0.5)
    masking = dict(type="ShuffledMasking", masking=masking) if shuffled else masking
    model = small_mae.build(masking=masking).eval()
    images = torch.randn(3, 3, 32, 32)
    first = model.make_mask(images).mask
    state = torch.get_rng_state()
    assert all(torch.equal(model.make_mask(images).mask, first) for _ in range(5))
    assert torch.equal(torch.get_rng_state(), state)


def test_in_eval_the_oracle_s_mask_of_an_image_does_not_depend_on_the_batch():
    model = model_with("OracleMasking", mask_ratio=0.5).eval()
    images = torch.randn(4, 3, 32, 32)
    together = model.masking.error(images)
    alone = torch.cat([model.masking.error(images[i : i + 1]) for i in (2, 0)])
    torch.testing.assert_close(alone, together[[2, 0]])


@pytest.mark.parametrize("kind", ["AttentionMasking", "OracleMasking"])
def test_a_copy_asks_the_copy_and_no_weight_is_saved_twice(kind):
    model = model_with(kind)
    assert not any(name.startswith("masking") for name in model.state_dict())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()
    images = torch.randn(2, 3, 32, 32)
    ask = "attention" if kind == "AttentionMasking" else "error"
    torch.manual_seed(0)
    first = getattr(other.masking, ask)(images)
    torch.manual_seed(0)
    assert not torch.allclose(first, getattr(model.masking, ask)(images))


def test_attention_asks_for_a_class_token():
    hivit = dict(type="MAEHiViT", arch="tiny", img_size=64, patch_size=16)
    neck = dict(small_mae.config()["neck"], patch_size=16, embed_dim=384)
    with pytest.raises(ValueError, match="takes the class token's attention from a MAEViT"):
        small_mae.build(masking=dict(type="AttentionMasking"), backbone=hivit, neck=neck)


def test_a_wrapped_strategy_takes_the_method_s_defaults_and_is_checked():
    model = model_with("ShuffledMasking")
    assert model.masking.masking.patch_size == model.masking.patch_size == (8, 8)
    assert model.masking.masking.mask_ratio == 0.75
    with pytest.raises(ValueError, match=r"patch_size=\(4, 4\), but MAE works on patches of"):
        small_mae.build(
            masking=dict(type="ShuffledMasking", masking=dict(type="RandomMasking", patch_size=4))
        )
