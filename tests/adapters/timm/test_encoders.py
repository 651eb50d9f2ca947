"""timm's ViTs as masked encoders: they see the visible tokens, each at its place, and no more."""

from __future__ import annotations

import pytest
import torch

timm = pytest.importorskip("timm", reason="needs the extra 'timm'")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from amn_masking import AdversarialMasking, PatchMask, RandomMasking  # noqa: E402
from amn_masking.adapters.timm import masked, patch_size  # noqa: E402
from amn_masking.patches import patchify  # noqa: E402
from tests.helpers.timm_models import (  # noqa: E402
    MODELS,
    TOKENS,
    features_alone,
    small,
    small_hiera,
    some_mask,
    visible_ids,
)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("free", [False, True], ids=["equal", "free"])
@pytest.mark.parametrize("name", TOKENS)
def test_features_are_those_of_tokens_picked_by_hand(name, free, training):
    model, images = small(name)
    patch_mask = some_mask(model, images, free)
    model.train(training)
    with masked(model, patch_mask), torch.no_grad():
        features = model.forward_features(images)
    assert features.shape[1] == model.num_prefix_tokens + patch_mask.num_visible
    model.eval()
    for row in range(3):
        expected = features_alone(model, images[row], visible_ids(patch_mask, row))
        got = features[row, : len(expected)]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_pixels_have_no_influence_and_visible_ones_have(name):
    model, images = small(name)
    patch_mask = some_mask(model, images)
    images.requires_grad_()
    with masked(model, patch_mask):
        model.forward_features(images).square().sum().backward()
    touched = patchify(images.grad, patch_size(model)).abs().sum(-1) > 0
    assert torch.equal(touched, patch_mask.mask == 0)


def test_hiera_keeps_what_the_mask_shows_in_the_mask_s_order():
    model, images = small("hiera")
    patch_mask = some_mask(model, images)
    keep = torch.zeros(3, 15, dtype=torch.bool)
    for row in range(3):
        keep[row, visible_ids(patch_mask, row)] = True
    with torch.no_grad():
        expected, expected_stages = model.forward_features(
            images, mask=keep, return_intermediates=True
        )
        with masked(model, patch_mask):
            features, stages = model.forward_features(images, return_intermediates=True)
    assert features.shape == (3, 5, 32)
    for row in range(3):
        ids = visible_ids(patch_mask, row)
        assert ids != sorted(ids)
        for place, unit in enumerate(ids):
            behind = sorted(ids).index(unit)
            assert torch.equal(features[row, place], expected[row, behind])
            for stage, expected_stage in zip(stages, expected_stages, strict=True):
                assert torch.equal(stage[row, place], expected_stage[row, behind])


def test_hiera_with_several_tokens_for_a_unit():
    images = torch.randn(3, 3, 32, 48)
    model = small_hiera(
        img_size=(32, 48), mask_unit_size=(4, 4), stages=(1, 1, 1), mask_unit_attn=(True,) * 3
    ).eval()
    assert patch_size(model) == (16, 16)
    patch_mask = PatchMask.from_shuffle(torch.tensor([[4, 1, 5, 0, 2, 3]] * 3), 3, (2, 3))
    with torch.no_grad(), masked(model, patch_mask):
        features, stages = model.forward_features(images, return_intermediates=True)
    # 4 x 4 tokens a unit, pooled once: 2 x 2, which Hiera's own reordering puts into their places.
    assert features.shape[1] == 3 * 4
    assert torch.equal(features.unflatten(1, (4, 3)).transpose(1, 2), stages[-1].flatten(2, 3))


def test_patch_size_is_asked_of_the_model():
    assert patch_size(small("vit_oblong_patch")[0]) == (8, 4)
    assert patch_size(small("naflex")[0]) == (8, 8)
    assert patch_size(timm.create_model("hiera_tiny_224")) == (32, 32)
    assert patch_size(timm.create_model("eva02_tiny_patch14_224")) == (14, 14)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_as_before_after_an_exception_too(name, training):
    model, images = small(name)
    model.train(training)
    patch_mask = some_mask(model, images)
    before = dict(vars(model))
    weights = list(model.state_dict())

    def stop(*args):
        raise RuntimeError("stop")

    handle = model.blocks[0].register_forward_pre_hook(stop)
    with masked(model, patch_mask):
        assert list(model.state_dict()) == weights
    with pytest.raises(RuntimeError, match="stop"), masked(model, patch_mask):
        model.forward_features(images)
    handle.remove()
    assert vars(model) == before
    with masked(model, patch_mask):
        model.forward_features(images)
    assert vars(model) == before


def test_a_model_is_masked_once_at_a_time():
    (model, images), (other, _) = small("vit"), small("vit")
    patch_mask = some_mask(model, images)
    with masked(model, patch_mask), masked(other, patch_mask):
        with pytest.raises(ValueError, match="masked already"), masked(model, patch_mask):
            pass
        features = model.forward_features(images)
    assert features.shape[1] == 1 + 5


@pytest.mark.parametrize("name", ["vit", "vit_parallel", "eva02", "naflex", "naflex_axial"])
def test_free_counts_without_the_fused_attention(name):
    model, images = small(name)
    attentions = [m for m in model.modules() if hasattr(m, "fused_attn")]
    assert attentions
    patch_mask = some_mask(model, images, free=True)
    with torch.no_grad(), masked(model, patch_mask):
        expected = model.forward_features(images)
        for attention in attentions:
            attention.fused_attn = False
        features = model.forward_features(images)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit", "eva_mixed", "naflex_axial"])
def test_activation_checkpointing_keeps_the_padding_hidden(name):
    model, images = small(name)
    model.train()
    patch_mask = some_mask(model, images, free=True)
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        with masked(model, patch_mask):
            loss = patch_mask.scatter(
                model.forward_features(images)[:, model.num_prefix_tokens :], torch.zeros(())
            )
        loss.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, saving in zip(*gradients, strict=True):
        torch.testing.assert_close(saving, plain)


@pytest.mark.parametrize("name", ["vit_registers", "eva_mixed", "naflex_axial"])
@pytest.mark.parametrize("threshold", ["quantile", "mean"])
def test_gate_lets_the_gradient_through_visible_tokens(name, threshold):
    model, images = small(name)
    features, gradients = [], []
    for gate in (False, True):
        torch.manual_seed(1)
        masking = AdversarialMasking(
            None if threshold == "mean" else 0.5,
            patch_size(model),
            threshold=dict(type=threshold),
            gate=gate,
        )
        with masked(model, masking(images)):
            features.append(model.forward_features(images))
        features[-1].square().sum().backward()
        gradients.append(masking.network.convolutions[0].weight.grad)
    assert torch.equal(*features)
    assert gradients[0] is None
    assert gradients[1].abs().max() > 0


def test_pooling_where_counts_are_equal():
    model, images = small("vit_no_class")
    patch_mask = some_mask(model, images)
    with torch.no_grad(), masked(model, patch_mask):
        pooled = model(images)
    for row in range(3):
        alone = features_alone(model, images[row], visible_ids(patch_mask, row))
        torch.testing.assert_close(pooled[row], model.fc_norm(alone.mean(0)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x: m.forward_features(x[..., :24]),
            r"32 x 24 .* 4 x 3 .* built for 4 x 4; .* 32 x 32",
        ),
        (lambda m, x: m.forward_features(x[..., :30]), "does not split into patches of 8 x 8"),
        (lambda m, x: m.forward_features(x[0]), r"expected images \(B, C, H, W\)"),
        (lambda m, x: m.forward_features(x[:1]), r"= \(1, 4, 4\) .* got \(3, 4, 4\)"),
        (lambda m, x: m.forward_intermediates(x), "use forward_features"),
        (lambda m, x: m.get_intermediate_layers(x), "use forward_features"),
        (lambda m, x: m(x), "would pool their padding.*type='quantile'"),
        (
            lambda m, x: m.forward_features(x, attn_mask=torch.ones(17, 17)),
            "expected none from the caller",
        ),
    ],
)
def test_what_a_masked_encoder_refuses(call, message):
    model, images = small("vit")
    patch_mask = some_mask(model, images, free=True)
    with masked(model, patch_mask), pytest.raises(ValueError, match=message):
        call(model, images)


def test_a_strategy_of_another_patch_size_is_told_the_encoder_s():
    model, images = small("naflex")
    patch_mask = RandomMasking(0.5, patch_size=4)(images)
    with masked(model, patch_mask), pytest.raises(ValueError, match=r"patch_size=\(8, 8\)"):
        model.forward_features(images)
    # As many patches, in another shape.
    patch_mask = PatchMask.from_shuffle(torch.rand(3, 15).argsort(1), 5, (5, 3))
    with (
        masked(model, patch_mask),
        pytest.raises(ValueError, match=r"= \(3, 3, 5\) .*got \(3, 5, 3\)"),
    ):
        model.forward_features(images)


@pytest.mark.parametrize("name", ["vit", "vit_oblong_patch", "eva02", "hiera"])
def test_images_of_another_size_than_the_encoder_s(name):
    """As many patches in all, of which the encoder would say nothing or an AssertionError."""
    model, images = small(name)
    h, w = (side // patch for side, patch in zip(images.shape[2:], patch_size(model), strict=True))
    turned = torch.randn(3, 3, w * patch_size(model)[0], h * patch_size(model)[1])
    other = turned if h != w else torch.randn(3, 3, 2 * patch_size(model)[0], 64)
    message = rf"images of {other.shape[2]} x {other.shape[3]} .* built for {h} x {w}; resize"
    patch_mask = RandomMasking(0.5, patch_size(model))(other)
    with masked(model, patch_mask), pytest.raises(ValueError, match=message):
        model.forward_features(other)


def test_naflex_batches_of_patches_are_refused():
    model, images = small("naflex")
    patches = torch.randn(3, 15, 192)
    coordinates = torch.zeros(3, 15, 2, dtype=torch.long)
    batch = dict(patches=patches, patch_coord=coordinates, patch_valid=torch.ones(3, 15).bool())
    with masked(model, some_mask(model, images)):
        for call in (lambda: model(batch), lambda: model.forward_features(patches, coordinates)):
            with pytest.raises(ValueError, match="patch_coord have a grid for each image"):
                call()


def test_what_hiera_cannot_take():
    model, images = small("hiera")
    with (
        pytest.raises(ValueError, match=r"threshold=dict\(type='quantile'\)"),
        masked(model, some_mask(model, images, free=True)),
    ):
        pass
    gated = AdversarialMasking(0.5, 8, gate=True)(images)
    with pytest.raises(ValueError, match="leave out gate=True"), masked(model, gated):
        pass
    dropping = small_hiera(patch_drop_rate=0.5).train()
    with masked(dropping, some_mask(dropping, images)):
        assert dropping.forward_features(images).shape[1] == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "expected a VisionTransformer, Eva, NaFlexVit or Hiera .* got ResNet"),
        ("vit_relpos_small_patch16_224", "got VisionTransformerRelPos"),
        ("vit_tiny_r_s16_p8_224", "VisionTransformer with HybridEmbed; .* seen hidden pixels"),
    ],
)
def test_models_that_cannot_be_masked(name, message):
    model = timm.create_model(name)
    patch_mask = RandomMasking(0.5)(torch.randn(1, 3, 224, 224))
    with pytest.raises(TypeError, match=message), masked(model, patch_mask):
        pass


def test_a_timm_that_cannot_hide_padding(monkeypatch):
    """Before it took attn_mask there, as Eva up to 1.0.25."""
    model, images = small("vit")
    stock = VisionTransformer.forward_features
    monkeypatch.setattr(VisionTransformer, "forward_features", lambda self, x: stock(self, x))
    with masked(model, some_mask(model, images)):
        model.forward_features(images)
    with (
        masked(model, some_mask(model, images, free=True)),
        pytest.raises(ValueError, match="take a newer timm, or threshold"),
    ):
        model.forward_features(images)


def test_a_timm_that_goes_past_its_patch_dropout(monkeypatch):
    """As NaFlexVit did in timm 1.0.16."""
    model, images = small("vit")

    def all_tokens(self, x):
        return self.norm(self.blocks(self._pos_embed(self.patch_embed(x))))

    monkeypatch.setattr(VisionTransformer, "forward_features", all_tokens)
    with (
        masked(model, some_mask(model, images)),
        pytest.raises(ValueError, match="encoded 17 tokens instead of 6"),
    ):
        model.forward_features(images)
