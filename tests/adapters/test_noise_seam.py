"""Laws of the seam for models that mask by sorting noise, on variants of forks' own masking."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("timm", reason="needs the extra 'timm'")

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.adapters.noise_seam import NoiseSeam, noise_answered, ratio_of
from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin, NoiseSeamMixin
from amn_masking.meters import adversarial_gain
from tests.helpers.reference_model import SmallMaskedAutoencoder


class OtherResults(SmallMaskedAutoencoder):
    """Masks by noise in a method with other arguments and results, as forks with convolutions."""

    def random_masking(self, length, batch, mask_ratio=None):
        noise = torch.rand(batch, length, device=self.cls_token.device)
        order = torch.argsort(noise, dim=1)
        ids_restore = torch.argsort(order, dim=1)
        kept = order[:, : int(length * (1 - mask_ratio))]
        mask = torch.ones([batch, length])
        mask[:, : kept.shape[1]] = 0
        return kept, torch.gather(mask, 1, ids_restore), ids_restore

    def forward_encoder(self, imgs, mask_ratio):
        tokens = self.embed(imgs)
        kept, mask, ids_restore = self.random_masking(tokens.shape[1], len(tokens), mask_ratio)
        tokens = self.with_class_token(tokens.take_along_dim(kept[:, :, None], 1))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), mask, ids_restore


class OwnRatio(OtherResults):
    """Its ratio is the model's, so that forward takes none."""

    def forward(self, imgs):
        return super().forward(imgs, 0.5)


class RowsAndColumns(SmallMaskedAutoencoder):
    """Masks whole rows and columns in a method of its own, as forks on spectrograms can."""

    def forward_encoder(self, imgs, mask_ratio):
        tokens = self.embed(imgs)
        seen = [torch.rand(len(tokens), 4).argsort(1).argsort(1) < 2 for _ in range(2)]
        rank = (seen[0][:, :, None] & seen[1][:, None, :]).flatten(1).float().neg().argsort(1)
        kept = tokens.take_along_dim(rank[:, :4, None], 1)
        restore = rank.argsort(1)
        return self.norm(self.with_class_token(kept)), (restore >= 4).float(), restore


def build(cls, masking=None, mixin=NoiseSeamMixin):
    torch.manual_seed(0)
    model = type("Learned", (mixin, cls), {})()
    if masking is not None:
        model.masking = masking
    return model


def images(batch=3):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def learned(mask_ratio=0.5, **options):
    torch.manual_seed(2)
    return AdversarialMasking(mask_ratio, 8, **options)


@pytest.mark.parametrize("ratio", [0.0625, 0.3, 0.5, 0.75, 0.9375])
def test_the_model_s_own_code_makes_the_mask(ratio):
    """All of it: mask, order of the visible tokens and ids_restore, at every count."""
    patch_mask = RandomMasking(ratio, 8)(images())
    with noise_answered(patch_mask, "a model"):
        noise = torch.rand(3, 16)
    order = noise.argsort(1)
    kept = int(16 * (1 - ratio_of(patch_mask)))
    assert torch.equal(order.argsort(1), patch_mask.ids_restore)
    assert torch.equal(order[:, :kept], patch_mask.ids_shuffle[:, : patch_mask.num_visible])
    assert torch.equal((order.argsort(1) >= kept).float(), patch_mask.mask)


def test_the_ratio_keeps_the_count_whatever_rounds():
    for length in range(2, 260):
        for visible in range(1, length):
            ratio = ratio_of(SimpleNamespace(num_visible=visible, num_patches=length))
            assert int(length * (1 - ratio)) == int(length - length * ratio) == visible


@pytest.mark.parametrize("cls", [SmallMaskedAutoencoder, OtherResults, OwnRatio])
def test_a_forward_pass_uses_the_strategy_s_mask_and_trains_both_networks(cls):
    model = build(cls, learned())
    made = []
    model.masking.register_forward_hook(lambda module, args, out: made.append(out))
    loss, _, mask = model(images())
    assert torch.equal(mask, made[0].mask)
    loss.backward()
    assert all(p.grad is not None for p in model.masking.parameters())
    assert adversarial_gain(lambda m: model.error_under(images(), m), made[0]).isfinite()


def test_it_is_what_the_mixin_that_overrides_random_masking_gives():
    results = []
    for mixin in (NoiseSeamMixin, MaskedAutoencoderMixin):
        model = build(SmallMaskedAutoencoder, learned(), mixin)
        torch.manual_seed(3)
        outputs = model(images())
        outputs[0].backward()
        results.append((*outputs, *(p.grad for p in model.parameters())))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_other_random_numbers_are_the_stock_ones():
    patch_mask = RandomMasking(0.5, 8)(images())
    torch.manual_seed(4)
    expected = torch.rand(16, 3), torch.rand(3), torch.rand(()), torch.randn(3, 16)
    torch.manual_seed(4)
    with NoiseSeam(patch_mask) as seam:
        found = torch.rand(16, 3), torch.rand(3), torch.rand(()), torch.randn(3, 16)
    assert all(map(torch.equal, found, expected))
    assert seam.answered == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.rand(3, 16, device="cpu"),
        lambda: torch.rand((3, 16)),
        lambda: torch.rand(size=(3, 16), dtype=torch.float64),
        lambda: torch.rand(torch.Size([3, 16]), dtype=torch.float16),
    ],
)
def test_the_noise_in_every_way_to_ask_for_it(call):
    patch_mask = RandomMasking(0.5, 8)(images())
    dtype = call().dtype
    with noise_answered(patch_mask, "a model"):
        noise = call()
    assert noise.dtype == dtype
    assert torch.equal(noise.long(), patch_mask.ids_restore)


# --- a mask that is not the strategy's is never used in silence


@pytest.mark.parametrize("masking", [learned(), RandomMasking(0.75, 8)])
def test_a_model_that_masks_by_a_method_of_its_own_is_refused(masking):
    with pytest.raises(ValueError, match=r"masked other patches than the strategy: .* of"):
        build(RowsAndColumns, masking, MaskedAutoencoderMixin)(images())
    with pytest.raises(ValueError, match=r"call torch.rand\(3, 16\) once.* called it 0 times"):
        build(RowsAndColumns, masking)(images())


def test_noise_that_is_drawn_twice_is_refused():
    class Twice(SmallMaskedAutoencoder):
        def forward(self, imgs, mask_ratio=0.75):
            torch.rand(len(imgs), 16)
            return super().forward(imgs, mask_ratio)

    with pytest.raises(ValueError, match="called it 2 times"):
        build(Twice, learned())(images())


def test_a_model_of_another_ratio_is_refused():
    with pytest.raises(ValueError, match=r"0\.500 masked, asked for 0\.250"):
        build(OwnRatio, learned(0.25))(images())


@pytest.mark.parametrize("mixin", [NoiseSeamMixin, MaskedAutoencoderMixin])
def test_a_model_that_fits_at_first_only_is_refused_when_it_no_longer_does(mixin):
    """Its ratio is its own, and that of the strategy moves away from it."""

    class First(SmallMaskedAutoencoder):
        def forward_encoder(self, imgs, mask_ratio):
            self.first = self.__dict__.get("first", mask_ratio)
            return super().forward_encoder(imgs, self.first)

    model = build(First, learned(dict(type="linear", start=0.5, end=0.75)), mixin)
    model(images())
    model(images())
    model.masking.set_progress(1.0)
    with pytest.raises(ValueError, match=r"masked other patches than|expected tokens"):
        model(images())


def test_a_fork_with_another_count_says_at_which_ratio_it_keeps_the_strategy_s():
    class Masks(OtherResults):  # int(L * ratio) patches are masked, where the reference keeps
        def random_masking(self, length, batch, mask_ratio=None):
            return super().random_masking(
                length, batch, 1 - (length - int(length * mask_ratio)) / length
            )

    with pytest.raises(ValueError, match=r"masked other patches.*override ratio_for"):
        build(Masks, RandomMasking(0.5, 8))(images())
    model = build(Masks, RandomMasking(0.5, 8))
    model.ratio_for = lambda mask: (mask.num_patches - mask.num_visible + 0.5) / mask.num_patches
    assert model(images())[2].mean() == 0.5


@pytest.mark.parametrize("how", [dict(dtype=torch.bfloat16), dict(out=torch.empty(2, 400))])
def test_noise_that_cannot_hold_the_order_is_refused(how):
    patch_mask = PatchMask.from_mask((torch.arange(800).reshape(2, 400) % 2).float())
    with pytest.raises(ValueError, match="expected noise of a type"), NoiseSeam(patch_mask):
        torch.rand(2, 400, **how)


def test_a_model_that_returns_no_mask_is_refused():
    class NoMask(SmallMaskedAutoencoder):
        def forward(self, imgs, mask_ratio=0.75):
            return super().forward(imgs, mask_ratio)[:2]

    with pytest.raises(ValueError, match=r"return the mask that it used third.*used_mask"):
        build(NoMask, learned(), MaskedAutoencoderMixin)(images())


@pytest.mark.parametrize(
    ("masking", "what"),
    [
        (dict(mask_ratio=0.75, prediction_ratio=0.25), "left-out patches"),
        (dict(mask_ratio=None, threshold=dict(type="mean")), "counts that differ"),
        (dict(estimator=dict(type="straight_through"), gate=True), "a gate"),
    ],
)
def test_what_its_own_masking_cannot_make_is_refused(masking, what):
    with pytest.raises(ValueError, match=what):
        build(OtherResults, learned(**masking))(images())


def test_without_masking_the_model_is_the_stock_one():
    stock, ours = OtherResults(), build(OtherResults)
    ours.load_state_dict(stock.state_dict())
    results = []
    for model in (stock, ours):
        torch.manual_seed(5)
        results.append(model(images(), 0.5))
    assert all(map(torch.equal, *results))


def test_a_given_mask_counts():
    patch_mask = PatchMask.from_mask(torch.eye(16)[:3])
    assert torch.equal(build(OtherResults)(images(), mask_ratio=patch_mask)[2], patch_mask.mask)


def test_two_masks_of_different_lengths_are_answered_side_by_side():
    audio, pictures = RandomMasking(0.5, 8)(images()), RandomMasking(0.25, 16)(images())
    with noise_answered(audio, "a model"), noise_answered(pictures, "a model"):
        found = torch.rand(3, 16), torch.rand(3, 4)
    for noise, patch_mask in zip(found, (audio, pictures), strict=True):
        assert torch.equal(noise.argsort(1), patch_mask.ids_shuffle)


def test_two_masks_of_one_length_cannot_be_told_apart():
    one, other = RandomMasking(0.5, 8)(images()), RandomMasking(0.25, 8)(images())
    with (
        pytest.raises(ValueError, match="called it 2 times"),
        noise_answered(one, "a model"),
        noise_answered(other, "a model"),
    ):
        torch.rand(3, 16), torch.rand(3, 16)
