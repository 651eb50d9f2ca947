"""The masked autoencoder around a ViT of timm."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

timm = pytest.importorskip("timm", reason="needs the extra 'timm'")

from amn_masking import AdversarialMasking, PatchMask, RandomMasking  # noqa: E402
from amn_masking.adapters.timm import MaskedAutoencoder, patch_size  # noqa: E402
from amn_masking.meters import adversarial_gain  # noqa: E402
from amn_masking.patches import masked_mean, patchify, spread_to_pixels  # noqa: E402
from tests.helpers.timm_models import (  # noqa: E402
    MODELS,
    TOKENS,
    features_alone,
    small,
    small_hiera,
    some_mask,
    visible_ids,
)

DECODER = dict(decoder_dim=16, decoder_depth=1, decoder_heads=2)


def build(name="vit", masking=None, **changes):
    encoder, images = small(name)
    masking = masking or RandomMasking(0.5, patch_size(encoder))
    return MaskedAutoencoder(encoder, masking, **{**DECODER, **changes}), images


def place(y, x, dim):
    """The fixed embedding of a place: sines of y and x, then cosines, at dim / 4 frequencies."""
    angles = [10000 ** (-4 * k / dim) for k in range(dim // 4)]
    parts = [f(c * a) for f in (math.sin, math.cos) for c in (y, x) for a in angles]
    return torch.tensor(parts)


def prediction_alone(mae, image, latent, ids, grid):
    """``(L, D)``: each token of the decoder put in its place by hand."""
    latent = mae.decoder_embed(latent)
    tokens = [latent[i] for i in range(mae.prefix)]
    for y in range(grid[0]):
        for x in range(grid[1]):
            patch = y * grid[1] + x
            visible = patch in ids
            token = latent[mae.prefix + ids.index(patch)] if visible else mae.mask_token
            tokens.append(token + place(y, x, mae.mask_token.shape[0]))
    return mae.decoder_pred(mae.decoder(torch.stack(tokens)[None]))[0, mae.prefix :]


@pytest.mark.parametrize("free", [False, True], ids=["equal", "free"])
@pytest.mark.parametrize("name", TOKENS)
@torch.no_grad()
def test_each_image_is_predicted_as_alone_and_by_hand(name, free):
    mae, images = build(name)
    mae.eval()
    patch_mask = some_mask(mae.encoder, images, free)
    pred = mae.predict(images, patch_mask)
    for row in range(3):
        ids = visible_ids(patch_mask, row)
        latent = features_alone(mae.encoder, images[row], ids)
        expected = prediction_alone(mae, images[row], latent, ids, patch_mask.grid)
        torch.testing.assert_close(pred[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_around_hiera():
    mae, images = build("hiera")
    mae.eval()
    patch_mask = some_mask(mae.encoder, images)
    pred = mae.predict(images, patch_mask)
    latent = mae.encoder.forward_features(images, mask=patch_mask.mask == 0)
    for row in range(3):
        ids = sorted(visible_ids(patch_mask, row))
        expected = prediction_alone(mae, images[row], latent[row], ids, patch_mask.grid)
        torch.testing.assert_close(pred[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_is_the_mean_square_on_masked_patches(norm_pix):
    mae, images = build(norm_pix=norm_pix)
    out = mae(images)
    total = []
    for row in range(3):
        for patch in range(16):
            y, x = 8 * (patch // 4), 8 * (patch % 4)
            target = images[row, :, y : y + 8, x : x + 8].permute(1, 2, 0).flatten()
            if norm_pix:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            error = (out.pred[row, patch] - target).square().mean()
            torch.testing.assert_close(out.error[row, patch], error)
            if out.patch_mask.mask[row, patch] == 1:
                total.append(error)
    torch.testing.assert_close(out.reconstruction, torch.stack(total).mean())
    assert torch.equal(out.loss, out.reconstruction)


def test_the_strategy_s_loss_counts():
    absolute = AdversarialMasking(0.5, 8, loss=dict(criterion="L1", lambda_adv=2.0))
    mae, images = build("naflex", absolute)
    out = mae(images)
    assert torch.equal(out.error, (out.pred - mae.target(images)).abs().mean(-1))
    torch.testing.assert_close(out.reconstruction, masked_mean(out.error, out.patch_mask.mask))
    adversarial, objective = absolute.loss.adversarial_terms(out.error, out.patch_mask)
    torch.testing.assert_close(out.loss, out.reconstruction + 2 * (adversarial + objective))
    out.loss.backward()
    assert absolute.network.convolutions[0].weight.grad.abs().max() > 0
    everywhere = AdversarialMasking(0.5, 8, loss=dict(reconstruct="all"))
    mae, images = build("naflex", everywhere)
    out = mae(images)
    torch.testing.assert_close(out.reconstruction, out.error.mean())


@pytest.mark.parametrize("name", MODELS)
def test_one_step_moves_the_encoder_the_decoder_and_the_masking_network(name):
    encoder, _ = small(name)
    mae, images = build(name, AdversarialMasking(0.5, patch_size(encoder)))
    before = {name: p.detach().clone() for name, p in mae.named_parameters()}
    mae(images).loss.backward()
    torch.optim.SGD(mae.parameters(), lr=0.1).step()
    still = {name for name, p in mae.named_parameters() if torch.equal(p, before[name])}
    heads = ("encoder.fc_norm", "encoder.attn_pool", "encoder.head")  # of classifiers
    assert {name for name in still if not name.startswith(heads)} == set()


@pytest.mark.parametrize("reconstruct", ["masked", "all"])
@pytest.mark.parametrize("name", ["vit", "naflex", "hiera"])
def test_patches_without_data_do_not_matter(name, reconstruct):
    """NaN in them gives the same masks, losses and gradients as any other number."""
    got = []
    for filler in (float("nan"), 7.0):
        torch.manual_seed(1)
        encoder, images = small(name)
        side = patch_size(encoder)
        masking = AdversarialMasking(0.5, side, loss=dict(reconstruct=reconstruct))
        mae = MaskedAutoencoder(encoder, masking, **DECODER)
        images[0, :, :8, :16] = images[1:, :, 8:, :8] = filler
        valid = patchify(images, side).ne(filler).all(-1) & patchify(images, side).isfinite().all(
            -1
        )
        out = mae(images, valid)
        out.loss.backward()
        assert not (out.patch_mask.mask * ~valid).any()
        counted = valid if reconstruct == "all" else out.patch_mask.mask > 0
        torch.testing.assert_close(out.reconstruction, out.error[counted].mean())
        error = mae.error_under(images, out.patch_mask)
        torch.testing.assert_close(error, out.error)
        gradients = [p.grad for p in mae.parameters() if p.grad is not None]
        got.append([out.loss.detach(), out.patch_mask.mask, *gradients])
    for one, other in zip(*got, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "options", [dict(threshold=dict(type="tracking")), dict(network=dict(channels=8))]
)
def test_the_weights_of_another_strategy_are_refused(options):
    mae, _ = build(masking=AdversarialMasking(0.5, 8))
    other, _ = build(masking=AdversarialMasking(0.5, 8, random_share=0.25, **options))
    with pytest.raises(RuntimeError, match=r"masking\.(threshold\.offset|network)"):
        other.load_state_dict(mae.state_dict())


def test_wrong_use_is_an_error_and_not_a_network_that_never_learns():
    mae, images = build(masking=AdversarialMasking(0.5, 8))
    with torch.no_grad():
        patch_mask = mae.masking(images)
    error = mae.error_under(images, patch_mask)
    with pytest.raises(ValueError, match=r"under torch\.no_grad\(\).*learn nothing"):
        mae.masking.total_loss(error.mean(), error, patch_mask)
    with pytest.raises(TypeError, match=r"expected the PatchMask .* got Tensor"):
        mae.masking.total_loss(error.mean(), error, patch_mask.mask)


def test_the_encoder_loads_into_timm():
    name, arguments = "vit_tiny_patch16_224", dict(img_size=32, depth=1, num_classes=0)
    encoder = timm.create_model(name, **arguments)
    mae = MaskedAutoencoder(encoder, AdversarialMasking(0.5), **DECODER)
    mae(torch.randn(2, 3, 32, 32)).loss.backward()
    torch.optim.SGD(mae.parameters(), lr=0.1).step()
    assert mae.encoder is encoder
    fresh = timm.create_model(name, **arguments)
    fresh.load_state_dict(mae.encoder.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(images), encoder.eval()(images))


def test_one_model_takes_images_of_any_shape():
    mae, _ = build("naflex")
    for height, width in [(32, 32), (24, 40), (8, 64)]:
        images = torch.randn(2, 3, height, width)
        assert mae(images).pred.shape == (2, height * width // 64, 192)


def test_other_channels():
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1, depth=1)
    mae = MaskedAutoencoder(encoder, RandomMasking(0.5), **DECODER)
    assert mae(torch.randn(2, 1, 32, 32)).pred.shape == (2, 4, 256)
    linear = timm.create_model(
        "naflexvit_base_patch16_gap", in_chans=2, depth=1, embed_proj_type="linear"
    )
    mae = MaskedAutoencoder(linear, RandomMasking(0.5), **DECODER)
    assert mae(torch.randn(2, 2, 32, 32)).pred.shape == (2, 4, 512)


def test_the_decoder_is_made_where_the_encoder_is():
    encoder, images = small("eva02")
    masking = AdversarialMasking(0.5, 8)
    mae = MaskedAutoencoder(encoder.bfloat16(), masking, **DECODER)
    assert {p.dtype for name, p in mae.named_parameters() if "masking" not in name} == {
        torch.bfloat16
    }
    out = mae(images.bfloat16())
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert masking.network.convolutions[0].weight.grad.dtype == torch.float32


def test_gain_of_a_given_mask():
    mae, images = build()
    out = mae(images)
    error = partial(mae.error_under, images)
    assert torch.equal(error(out.patch_mask), out.error)
    with torch.no_grad():
        order = error(out.patch_mask).argsort(1)
    # An oracle: the patches that this model finds hardest, when it sees the others.
    hardest = PatchMask.from_shuffle(order, 8, (4, 4))
    gain = adversarial_gain(error, hardest)
    expected = masked_mean(error(hardest), hardest.mask)
    assert 0 < gain < 10
    torch.manual_seed(3)
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(5))
    at_random = PatchMask.from_shuffle(noise.argsort(1), 8, (4, 4))
    gain = adversarial_gain(error, hardest, torch.Generator().manual_seed(5))
    torch.testing.assert_close(gain, expected / masked_mean(error(at_random), at_random.mask))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_pictures_of_a_perfect_prediction_are_the_images(norm_pix):
    from amn_masking.visualize import draw_masks

    class Perfect(MaskedAutoencoder):
        def predict(self, images, patch_mask):
            return self.target(images)

    encoder, images = small("naflex")
    mae = Perfect(encoder, AdversarialMasking(0.5, 8), norm_pix=norm_pix, **DECODER)
    patch_mask, pictures = mae.reconstruct(images)
    torch.testing.assert_close(pictures, images, atol=1e-4, rtol=1e-4)
    pytest.importorskip("matplotlib")
    drawn = draw_masks(images, patch_mask, pictures)
    assert drawn.ndim == 3


@pytest.mark.parametrize("norm_pix", [True, False])
def test_pictures_do_not_know_what_stands_where_there_is_no_data(norm_pix):
    encoder, images = small("naflex")
    mae = MaskedAutoencoder(encoder, AdversarialMasking(0.5, 8), norm_pix=norm_pix, **DECODER)
    valid = torch.ones(3, 15, dtype=torch.bool)
    valid[:, [0, 7]] = False
    shown = spread_to_pixels(valid, (3, 5), 24, 40)
    (one, pictures), (other, same) = (
        mae.eval().reconstruct(images.where(shown, fill), valid) for fill in (0.0, float("nan"))
    )
    assert torch.equal(one.mask, other.mask)
    assert torch.isfinite(pictures).all()
    assert torch.equal(pictures, same)


def test_real_predictions_for_pictures_have_the_statistics_of_the_patches():
    mae, images = build("naflex")
    torch.manual_seed(1)
    patch_mask, pictures = mae.reconstruct(images)
    pred = mae.predict(images, patch_mask)
    patches = patchify(images, (8, 8))
    expected = pred * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
    torch.testing.assert_close(patchify(pictures, (8, 8)), expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: MaskedAutoencoder(small("vit")[0], RandomMasking(0.5, 16)),
            ValueError,
            r"give the strategy patch_size=\(8, 8\)",
        ),
        (
            lambda: MaskedAutoencoder(timm.create_model("resnet18"), RandomMasking()),
            TypeError,
            "got ResNet",
        ),
        (
            lambda: MaskedAutoencoder(small("vit")[0], 0.75),
            TypeError,
            "expected a MaskingStrategy .* got float",
        ),
        (
            lambda: build(decoder_dim=18),
            ValueError,
            "a multiple of 4 and of decoder_heads=2, got 18",
        ),
        (
            lambda: build(decoder_dim=16, decoder_heads=3),
            ValueError,
            "a multiple of 4 and of decoder_heads=3, got 16",
        ),
        (
            lambda: MaskedAutoencoder(
                small_hiera(
                    img_size=32,
                    mask_unit_size=(4, 4),
                    stages=(1, 1, 1),
                    mask_unit_attn=(True,) * 3,
                ),
                RandomMasking(0.5, 16),
            ),
            ValueError,
            "one token for each mask unit, but this Hiera's last stage has 4",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("vit", {}), ("naflex_mixed", dict(prediction_ratio=0.25))]
)
def test_compiles_without_a_graph_break(name, options):
    torch._dynamo.reset()
    encoder, _ = small(name)
    mae, images = build(name, AdversarialMasking(0.5, patch_size(encoder), **options))
    # Dynamo alone finds graph breaks; the traced backward is seen once.
    backend = "aot_eager" if name == "vit" else "eager"
    compiled = torch.compile(mae, fullgraph=True, backend=backend)
    for batch in (3, 2):
        losses, gradients = [], []
        for model in (mae, compiled):
            mae.zero_grad()
            mae.masking.eval()
            out = model(images[:batch])
            out.loss.backward()
            losses.append(out.loss.detach())
            gradients.append({n: p.grad for n, p in mae.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*losses)
        assert gradients[0].keys() == gradients[1].keys()
        for key in gradients[0]:
            torch.testing.assert_close(gradients[0][key], gradients[1][key], msg=key)
    mae.masking.train()
    for batch in (3, 2):  # with the noise of training
        assert torch.isfinite(compiled(images[:batch]).loss)
    assert "forward_features" not in vars(encoder)


@pytest.mark.slow
def test_free_counts_compile_with_graph_breaks():
    torch._dynamo.reset()
    masking = AdversarialMasking(patch_size=8, threshold=dict(type="mean")).eval()
    mae, images = build("vit", masking)
    compiled = torch.compile(mae, backend="eager")
    for batch in (3, 2):
        out = compiled(images[:batch])
        assert out.patch_mask.padding is not None
        torch.testing.assert_close(out.loss, mae(images[:batch]).loss)
