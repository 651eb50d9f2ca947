"""MONAI's masked autoencoder under masks of ours: images and volumes."""

from __future__ import annotations

from functools import partial
from itertools import chain

import pytest
import torch

pytest.importorskip("monai", reason="needs the extra 'monai'")

from monai.networks.nets import MaskedAutoEncoderViT

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.adapters.monai import MaskGivenMixin
from amn_masking.patches import masked_mean, patchify

SMALL = dict(
    hidden_size=24, mlp_dim=16, num_layers=1, num_heads=2, decoder_hidden_size=24,
    decoder_mlp_dim=16, decoder_num_layers=2, decoder_num_heads=2,
)  # fmt: skip
SIDES = {2: (24, 16), 3: (8, 12, 16)}
PATCHES = {2: (8, 4), 3: (4, 4, 8)}


class Learned(MaskGivenMixin, MaskedAutoEncoderViT):
    """As a user writes it."""


def build(kind: type = Learned, dims: int = 3, seed: int = 0) -> MaskedAutoEncoderViT:
    torch.manual_seed(seed)
    return kind(2, SIDES[dims], PATCHES[dims], spatial_dims=dims, **SMALL)


def images_of(dims: int) -> torch.Tensor:
    return torch.randn(3, 2, *SIDES[dims], generator=torch.Generator().manual_seed(1))


def strategy(dims: int = 3, **options) -> AdversarialMasking:
    return AdversarialMasking(
        **dict(mask_ratio=0.5, patch_size=PATCHES[dims], network=dict(in_channels=2)) | options
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_its_own_draw_given_as_a_mask_is_the_stock_model(dims):
    model, stock, images = build(dims=dims), build(MaskedAutoEncoderViT, dims), images_of(dims)
    model.load_state_dict(stock.state_dict())
    for ratio in (None, 0.5):
        torch.manual_seed(3)
        prediction, mask = stock(images, ratio)
        torch.manual_seed(3)
        as_stock = model(images, ratio)
        assert torch.equal(as_stock[0], prediction)
        assert torch.equal(as_stock[1], mask)

        # Its visible patches in the order in which it drew them, then the others.
        torch.manual_seed(3)
        _, drawn, _ = stock._masking(stock.patch_embedding(images), ratio)
        others = [row.nonzero()[:, 0] for row in mask]
        order = torch.cat([drawn, torch.stack(others)], 1)
        grid = tuple(side // p for side, p in zip(SIDES[dims], PATCHES[dims], strict=True))
        given = PatchMask.from_shuffle(order, drawn.shape[1], grid)
        ours, returned = model(images, given)
        assert torch.equal(ours, prediction)
        assert torch.equal(returned, mask)
        assert returned.dtype == mask.dtype


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("left_out", [False, True])
def test_a_step_trains_both_networks_by_the_error_of_the_predicted(dims, left_out):
    model, images = build(dims=dims), images_of(dims)
    masking = strategy(dims, prediction_ratio=0.25 if left_out else None)
    patch_mask = masking(images)
    prediction, mask = model(images, patch_mask)
    assert torch.equal(mask.float(), patch_mask.predicted)
    error = (prediction - patchify(images, PATCHES[dims])).square().mean(-1)
    masking.total_loss(masked_mean(error, mask), error, patch_mask).backward()
    for name, weight in chain(model.named_parameters(), masking.named_parameters()):
        if weight.requires_grad and "pos_embed" not in name and "norm_cross" not in name:
            assert weight.grad is not None, name
    assert any(weight.grad.abs().sum() > 0 for weight in masking.network.parameters())


def test_visible_patches_alone_reach_the_encoder():
    model, images = build(), images_of(3)
    patch_mask = strategy()(images)
    noise = patch_mask.pixel_mask(*SIDES[3]) * torch.randn(images.shape)
    changed = model(images + 100 * noise, patch_mask)[0]
    assert torch.equal(changed, model(images, patch_mask)[0])


def test_the_decoder_does_without_what_is_left_out():
    model, images = build(), images_of(3)
    patch_mask = strategy(prediction_ratio=0.25)(images)
    seen = []
    model.decoder_blocks[0].register_forward_hook(lambda _, args, out: seen.append(args[0]))
    prediction, _ = model(images, patch_mask)
    length = patch_mask.num_patches
    assert seen[0].shape[1] == 1 + length - patch_mask.num_left_out < 1 + length
    left_out = (patch_mask.mask - patch_mask.predicted).bool()
    assert left_out.any()
    assert not prediction[left_out].any()


def test_patches_without_data_are_shown_as_nothing():
    model, images = build(), images_of(3)
    holes = images.clone()
    holes[:, :, :4, :4, :8] = torch.nan
    valid = ~holes.isnan().any(1)
    patch_mask = strategy(mask_ratio=0.25)(holes, valid=valid)
    assert not patch_mask.mask[:, 0].any()
    prediction, _ = model(holes, patch_mask)
    assert torch.equal(prediction, model(holes.nan_to_num(0.0), patch_mask)[0])


def test_what_it_cannot_follow_is_refused():
    model, images = build(), images_of(3)
    free = AdversarialMasking(
        patch_size=PATCHES[3], threshold=dict(type="mean"), network=dict(in_channels=2)
    )
    with pytest.raises(ValueError, match=r"same number of visible patches.*'quantile'"):
        model(images, free(images))
    other = RandomMasking(0.5, patch_size=(4, 4, 4))
    with pytest.raises(ValueError, match=r"expected a mask of .* = .3, 2, 3, 2.*got"):
        model(images, other(images))
    with pytest.raises(ValueError, match="built for 2 x 3 x 2"):
        model(larger := torch.randn(3, 2, 16, 12, 16), strategy()(larger))
    for given in (strategy(), strategy()(images).mask):
        with pytest.raises(TypeError, match=f"the PatchMask that .* got {type(given).__name__}"):
            model(images, given)


class Renamed(MaskedAutoEncoderViT):
    """A MONAI that masks by another method."""

    def forward(self, x, masking_ratio=None):
        x = self.patch_embedding(x)
        tokens, _, mask = MaskedAutoEncoderViT._masking(self, x, 0.5)
        return tokens, mask


def test_a_model_that_masks_in_another_way_is_refused():
    class Wrong(MaskGivenMixin, Renamed): ...

    images = images_of(3)
    with pytest.raises(ValueError, match="expected to mask by its method _masking"):
        build(Wrong)(images, strategy()(images))


def test_the_error_under_random_masks_needs_nothing_of_its_own():
    from amn_masking.meters import adversarial_gain

    model, images, masking = build(), images_of(3), strategy()

    def error(images, patch_mask):
        return (model(images, patch_mask)[0] - patchify(images, PATCHES[3])).square().mean(-1)

    assert 0 < adversarial_gain(partial(error, images), masking(images)).item() < 10
