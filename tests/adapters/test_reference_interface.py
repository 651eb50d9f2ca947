"""Forks of other interfaces: what they have to override is named, and once it is they train."""

from __future__ import annotations

import pytest
import torch
from timm.layers import PatchEmbed
from torch import nn

pytest.importorskip("timm", reason="needs the extra 'timm'")

from amn_masking import AdversarialMasking, PatchMask
from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin, NoiseSeamMixin
from amn_masking.patches import patchify
from amn_masking.strategies import TubeMasking
from tests.helpers.nested_model import PrithviMAE
from tests.helpers.reference_model import SmallMaskedAutoencoder


def mask_by_noise(batch, length, kept):
    """Kept patches, mask and ids_restore, as the reference's masking makes them."""
    order = torch.rand(batch, length).argsort(1)
    rank = order.argsort(1)
    return order[:, :kept], (rank >= kept).float(), rank


class Spectrograms(SmallMaskedAutoencoder):
    """As AudioMAE: (B, 1, frames, bins), a fourth result, and masks of whole times and bins."""

    def __init__(self, mask_2d=False):
        super().__init__()
        self.mask_2d = mask_2d
        self.patch_embed = PatchEmbed((64, 16), 8, 1, 16)
        self.decoder_pred = nn.Linear(8, 64)

    def random_masking_2d(self, x, mask_ratio):
        kept = [torch.rand(len(x), n).argsort(1).argsort(1) < n // 2 for n in (8, 2)]
        shown = (kept[0][:, :, None] & kept[1][:, None, :]).flatten(1)
        order = shown.float().neg().argsort(dim=1, stable=True)
        return x.take_along_dim(order[:, :4, None], 1), 1 - shown.float(), order.argsort(1)

    def forward(self, imgs, mask_ratio=0.8):
        masking = self.random_masking_2d if self.mask_2d else self.random_masking
        tokens, mask, restore = masking(self.embed(imgs), mask_ratio)
        for block in self.blocks:
            tokens = block(tokens)
        latent = self.norm(self.with_class_token(tokens))
        pred = self.forward_decoder(latent, restore)
        error = (pred - self.patchify(imgs)).square().mean(-1)
        return (error * mask).sum() / mask.sum(), pred, mask, torch.zeros(1)


class Stages(SmallMaskedAutoencoder):
    """As ConvMAE: stages embed, images are masked, and what is kept comes back as indices."""

    def __init__(self):
        super().__init__()
        self.patch_embed3 = self.patch_embed
        del self.patch_embed

    def patchify(self, imgs):
        return patchify(imgs, (8, 8))

    def random_masking(self, x, mask_ratio=None):
        return mask_by_noise(len(x), 16, int(16 * (1 - mask_ratio)))

    def forward_encoder(self, imgs, mask_ratio):
        kept, mask, restore = self.random_masking(imgs, mask_ratio)
        tokens = self.patch_embed3(imgs) + self.pos_embed[:, 1:]
        return self.norm(tokens.take_along_dim(kept[:, :, None], 1)), mask, restore

    def forward_decoder(self, latent, restore):
        return super().forward_decoder(torch.cat([latent[:, :1], latent], 1), restore)


class Times(SmallMaskedAutoencoder):
    """As SatMAE of series: (B, T, C, H, W) and their dates, a token for each patch and time."""

    def __init__(self):
        super().__init__()
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + 32, 8))

    def patchify(self, imgs):
        assert imgs.shape[2] == imgs.shape[3]
        return super().patchify(imgs)

    def forward(self, imgs, timestamps, mask_ratio=0.75):
        tokens = torch.cat([self.embed(imgs[:, i]) + timestamps[i] for i in range(2)], 1)
        visible, mask, restore = self.random_masking(tokens, mask_ratio)
        pred = self.forward_decoder(self.norm(self.with_class_token(visible)), restore)
        target = torch.cat([super(Times, self).patchify(imgs[:, i]) for i in range(2)], 1)
        error = (pred - target).square().mean(-1)
        return (error * mask).sum() / mask.sum(), pred, mask


class Groups(SmallMaskedAutoencoder):
    """As SatMAE of spectra: a token for each patch and group of channels, a list that embeds."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.ModuleList([self.patch_embed])
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + 32, 8))

    def patchify(self, imgs, p, c):
        return patchify(imgs, (p, p)).reshape(len(imgs), -1, p * p * c).repeat(1, 2, 1)

    def forward_encoder(self, imgs, mask_ratio):
        tokens = (self.patch_embed[0](imgs) + self.pos_embed[:, 1:]).repeat(1, 2, 1)
        visible, mask, restore = self.random_masking(tokens, mask_ratio)
        return self.norm(self.with_class_token(visible)), mask, restore

    def forward_loss(self, imgs, pred, mask):
        error = (pred - self.patchify(imgs, 8, 3)).square().mean(-1)
        return (error * mask).sum() / mask.sum()


class Scales(SmallMaskedAutoencoder):
    """As Scale-MAE: a resolution, pictures of two scales for a prediction."""

    def forward(self, imgs, input_res, mask_ratio=0.75):
        loss, pred, mask = super().forward(imgs, mask_ratio)
        return loss, [pred, pred + 0 * input_res], mask, "positions"


class Crossed(SmallMaskedAutoencoder):
    """As CrossMAE: another argument for the masking, and only some patches are predicted."""

    def random_masking(self, x, mask_ratio, kept_mask_ratio):
        raise NotImplementedError

    def forward_encoder(self, imgs, mask_ratio):
        tokens, mask, restore = self.random_masking(self.embed(imgs), mask_ratio, 0.25)
        return self.norm(self.with_class_token(tokens)), mask, restore

    def forward(self, imgs, mask_ratio=0.75):
        latent, mask, restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, restore)[mask.bool()].unflatten(0, (len(imgs), -1))
        target = self.patchify(imgs)[mask.bool()].unflatten(0, (len(imgs), -1))
        return (pred - target).square().mean(), pred, mask


class Reckons(SmallMaskedAutoencoder):
    """Its encoder counts what it is to keep before it masks."""

    def random_masking(self, length, batch, mask_ratio):
        return mask_by_noise(batch, length, int(length * (1 - mask_ratio)))

    def forward_encoder(self, imgs, mask_ratio):
        self.kept = int(16 * (1 - mask_ratio))
        kept, mask, restore = self.random_masking(16, len(imgs), mask_ratio)
        tokens = self.with_class_token(self.embed(imgs).take_along_dim(kept[:, :, None], 1))
        return self.norm(tokens), mask, restore


class Lengths(Reckons):
    def forward_encoder(self, imgs, mask_ratio):
        self.random_masking(16, len(imgs), mask_ratio)


class NoTargets(SmallMaskedAutoencoder):
    def __init__(self):
        super().__init__()
        del self.norm_pix_loss

    def forward_loss(self, imgs, pred, mask):
        return pred.mean()


def learned(patch_size=8, **options):
    torch.manual_seed(2)
    return AdversarialMasking(0.5, patch_size, **options)


def ours(fork, mixin=MaskedAutoencoderMixin, masking=None, options=None, **methods):
    torch.manual_seed(0)
    model = type("Ours", (mixin, fork), methods)(**options or {})
    model.masking = learned() if masking is None else masking
    return model


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SERIES = torch.stack([IMAGES, IMAGES.flip(-1)], 1)  # (B, T, C, H, W)
SIZE = r"override mask_patch_size\(self\) to return"
ERROR = r"override patch_error\(self, imgs, pred\) to return the error of each patch, \(B, L\)"
RESULTS = r"random_masking\(self, x, mask_ratio\) -> \(x_masked, mask, ids_restore\)"
SOUND = torch.randn(3, 1, 64, 16, generator=torch.Generator().manual_seed(1))
SAID = {
    "AudioMAE, times and bins": (
        Spectrograms,
        (SOUND,),
        dict(masking=learned(network=dict(in_channels=1)), options=dict(mask_2d=True)),
        ValueError,
        r"Ours masked other patches than the strategy: \d+ of the batch.s 48 differ",
    ),
    "ConvMAE": (Stages, (IMAGES,), {}, TypeError, rf"no patch_embed; {SIZE} \(height, width\)"),
    "ConvMAE, its masking": (
        Stages,
        (IMAGES,),
        dict(mask_patch_size=lambda self: (8, 8)),
        TypeError,
        rf"with a tensor \(3, 3, 32, 32\) first, but expected was {RESULTS}.* NoiseSeamMixin",
    ),
    "SatMAE, series": (
        Times,
        (SERIES, torch.zeros(2)),
        {},
        ValueError,
        rf"\(3, 2, 3, 32, 32\), but .* \(8, 8\).*{SIZE} a side .*make_mask\(self, imgs\)",
    ),
    "SatMAE, spectra": (
        Groups,
        (IMAGES,),
        {},
        ValueError,
        r"32 tokens of each image, 2 for .* 16 patches; override make_mask.*tubes\(2\)",
    ),
    "SatMAE, spectra, its error": (
        Groups,
        (IMAGES,),
        dict(make_mask=lambda self, imgs: self.masking(imgs).tubes(2)),
        TypeError,
        rf"patchify\(imgs\) of Ours to take .* alone, but it raised TypeError: .*{ERROR}",
    ),
    "Scale-MAE": (
        Scales,
        (IMAGES, 1.0),
        {},
        TypeError,
        rf"Ours to predict a tensor, got list; {ERROR}",
    ),
    "CrossMAE": (
        Crossed,
        (IMAGES,),
        {},
        ValueError,
        rf"\(3, 16, 192\), as .*, got \(3, 8, 192\); {ERROR}; .*override forward .*whole = pred",
    ),
    "reckons": (Reckons, (IMAGES,), {}, TypeError, rf"reckons with mask_ratio.*{RESULTS}.* Noise"),
    "lengths": (Lengths, (IMAGES,), {}, TypeError, rf"with 16 first, but expected was {RESULTS}"),
    "no norm_pix_loss": (NoTargets, (IMAGES,), {}, TypeError, rf"have norm_pix_loss; {ERROR}"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_to_override_is_said(case):
    fork, call, methods, error, message = SAID[case]
    with pytest.raises(error, match=message):
        ours(fork, **methods)(*call)


def test_a_full_memory_is_not_taken_for_another_interface():
    def patchify(self, imgs):
        raise torch.cuda.OutOfMemoryError("out of memory")

    model = ours(SmallMaskedAutoencoder, patchify=patchify)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model.patch_error(IMAGES, torch.zeros(2, 16, 192))


def series_error(self, imgs, pred):
    target = torch.cat([SmallMaskedAutoencoder.patchify(self, imgs[:, i]) for i in range(2)], 1)
    return (pred - target).square().mean(-1)


def whole(self, imgs, mask_ratio=0.75):
    loss, pred, mask = Crossed.forward(self, imgs, mask_ratio)
    places = pred.new_zeros(*mask.shape, pred.shape[-1])
    places[mask.bool()] = pred.flatten(0, 1)
    return loss, places, mask


class Flat(PrithviMAE):
    """As docs/reference_mae.md has it: the reference's results."""

    def forward(self, pixel_values, *args, mask_ratio=None):
        loss, pred, mask = super().forward(pixel_values, *args, mask_ratio=mask_ratio)
        mask = self.patchify(mask[:, None].expand_as(pixel_values))[:, :, 0]
        return loss["loss"], self.patchify(pred), mask


def prithvi(frames):
    """Tubes where a patch is of one frame, space and time where it is of two."""
    places = AdversarialMasking(0.5, (4, 4, 4), network=dict(in_channels=6))
    masking = (
        TubeMasking(places, 4) if frames == 1 else learned((2, 4, 4), network=dict(in_channels=6))
    )
    model = ours(
        Flat,
        NoiseSeamMixin,
        masking=masking,
        mask_patch_size=lambda self: self.encoder.patch_embed.patch_size,
        options=dict(patch_size=(frames, 4, 4)),
    )
    return model, (torch.randn(2, 6, 4, 16, 16),)


def any_size(self):
    return None


MENDED = {
    "AudioMAE": lambda: (
        ours(Spectrograms, masking=learned(network=dict(in_channels=1))),
        (SOUND,),
    ),
    "ConvMAE": lambda: (
        ours(Stages, NoiseSeamMixin, mask_patch_size=lambda self: (8, 8)),
        (IMAGES,),
    ),
    "SatMAE, series": lambda: (
        ours(
            Times,
            masking=learned((1, 8, 8)),
            mask_patch_size=any_size,
            make_mask=lambda self, imgs: self.masking(imgs.transpose(1, 2)),
            patch_error=series_error,
        ),
        (SERIES, torch.zeros(2)),
    ),
    "SatMAE, spectra": lambda: (
        ours(
            Groups,
            mask_patch_size=any_size,
            make_mask=lambda self, imgs: self.masking(imgs).tubes(2),
            patch_error=lambda self, imgs, pred: (
                (pred - self.patchify(imgs, 8, 3)).square().mean(-1)
            ),
        ),
        (IMAGES,),
    ),
    "Scale-MAE": lambda: (
        ours(
            Scales,
            patch_error=lambda self, imgs, pred: (pred[0] - self.patchify(imgs)).square().mean(-1),
        ),
        (IMAGES, 1.0),
    ),
    "CrossMAE": lambda: (ours(type("Whole", (Crossed,), dict(forward=whole))), (IMAGES,)),
    "Prithvi, tubes": lambda: prithvi(1),
    "Prithvi, space and time": lambda: prithvi(2),
    "reckons": lambda: (ours(Reckons, NoiseSeamMixin), (IMAGES,)),
}


@pytest.mark.parametrize("case", MENDED)
def test_what_is_said_mends_it(case):
    """Both networks get a gradient, and the error under a given mask is the model's."""
    model, call = MENDED[case]()
    outputs = model(*call)
    outputs[0].backward()
    assert any(weight.grad.any() for weight in model.masking.parameters())
    assert model.decoder_pred.weight.grad.any()
    patch_mask = model.eval().make_mask(call[0])
    error = model.error_under(call[0], patch_mask, *call[1:])
    assert error.shape == outputs[2].shape


def test_an_error_of_the_model_s_own_stays_as_it_is():
    class Broken(SmallMaskedAutoencoder):
        def forward_decoder(self, latent, ids_restore):
            return latent.no_such_thing

    with pytest.raises(AttributeError, match=r"has no attribute 'no_such_thing'"):
        ours(Broken)(IMAGES)


# --- a given mask is no way round what a strategy is refused for


@pytest.mark.parametrize(
    ("masking", "message"),
    [
        (dict(patch_size=4), r"patch_size=\(4, 4\), but Ours works on patches of \(8, 8\)"),
        (dict(loss=dict(criterion="L1")), "the strategy's loss says criterion='L1', but Ours"),
        (dict(loss=dict(reconstruct="all")), "reconstruct='all'"),
    ],
)
@pytest.mark.parametrize("mixin", [MaskedAutoencoderMixin, NoiseSeamMixin])
def test_a_given_mask_does_not_skip_what_its_strategy_is_asked(masking, message, mixin):
    model = ours(SmallMaskedAutoencoder, mixin, masking=learned(**masking))
    for ratio in (PatchMask.from_mask(torch.eye(16)[:3]), 0.5):
        with pytest.raises(ValueError, match=message):
            model(IMAGES, mask_ratio=ratio)


# --- a checkpoint with a masking network, and no strategy to take it


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("before", [False, True])
def test_a_strict_load_without_a_strategy_says_which_weights_nobody_takes(before, prefix):
    """torch takes what is below a registered module for known, also where that is None."""
    trained, fresh = ours(SmallMaskedAutoencoder), ours(SmallMaskedAutoencoder)
    if not before:
        fresh = type(fresh)()
    fresh.masking = None
    whole = nn.ModuleDict(dict(module=fresh)) if prefix else fresh
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"Unexpected key.*{prefix}masking\.network"):
        whole.load_state_dict(state)
    left = whole.load_state_dict(state, strict=False)
    assert left.missing_keys == []
    assert left.unexpected_keys == [name for name in state if "masking." in name]
    fresh.masking = learned()
    assert whole.load_state_dict(state).unexpected_keys == []
    assert torch.equal(
        fresh.masking.network.convolutions[0].weight, trained.masking.network.convolutions[0].weight
    )
