"""Laws of the mixin for the reference MAE's interface; the shared ones: tests/contract."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("timm", reason="needs the extra 'timm'")

from timm.models.vision_transformer import Block

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin
from amn_masking.meters import adversarial_gain
from tests.helpers.reference_model import SmallMaskedAutoencoder

FREE = dict(threshold=dict(type="mean"), mask_ratio=None)


class Learned(MaskedAutoencoderMixin, SmallMaskedAutoencoder):
    pass


def build(cls=Learned, masking=None, **options):
    torch.manual_seed(0)
    model = cls(**options)
    if masking is not None:
        model.masking = masking
    return model


def learned(mask_ratio=0.5, patch_size=8, **options):
    torch.manual_seed(2)
    return AdversarialMasking(mask_ratio, patch_size, **options)


def images(batch=3):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ragged(batch=3):
    """Masks of 1, 5 and 15 of 16 patches."""
    rank = torch.rand(batch, 16).argsort(1).argsort(1)
    return PatchMask.from_mask(rank < torch.tensor([1, 5, 15])[:batch, None])


def run(model, seed=3, **options):
    torch.manual_seed(seed)
    outputs = model(images(), **options)
    outputs[0].backward()
    return outputs, {name: p.grad for name, p in model.named_parameters()}


def same(one, two):
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    for name, gradient in two[1].items():
        assert torch.equal(one[1][name], gradient), name


# --- nothing changes that was not asked for


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("options", [{}, dict(mask_ratio=0.5)])
def test_without_masking_the_model_is_the_stock_one_bit_for_bit(options, norm_pix_loss):
    ours = build(norm_pix_loss=norm_pix_loss)
    stock = build(SmallMaskedAutoencoder, norm_pix_loss=norm_pix_loss)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    same(run(ours, **options), run(stock, **options))
    outputs = ours.random_masking(torch.zeros(2, 16, 4), 0.25)
    assert outputs[0].shape == (2, 12, 4)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_random_masking_is_the_stock_model_s_given_the_same_seed(norm_pix_loss):
    ours = build(masking=RandomMasking(0.5, 8), norm_pix_loss=norm_pix_loss)
    stock = build(SmallMaskedAutoencoder, norm_pix_loss=norm_pix_loss)
    # The caller's ratio, here as a training loop passes it, is not looked at.
    same(run(ours, mask_ratio=0.9), run(stock, mask_ratio=0.5))


@pytest.mark.parametrize("masking", [None, learned()])
@pytest.mark.parametrize("patch_mask", [ragged(), PatchMask.from_mask(torch.eye(16)[:3])])
def test_a_mask_that_the_caller_gives_counts(masking, patch_mask):
    model = build(masking=masking)
    for outputs in (model(images(), patch_mask), model(images(), mask_ratio=patch_mask)):
        assert torch.equal(outputs[2], patch_mask.mask)
        own = model.forward_loss(images(), *outputs[1:])
        torch.testing.assert_close(outputs[0], own if masking is None else outputs[0])
    assert masking is None or not torch.equal(outputs[0], own)


# --- one optimizer, one checkpoint, schedules


def test_the_masking_network_is_a_submodule_like_any_other(tmp_path):
    model = build(masking=learned())
    masking = {id(p) for p in model.masking.parameters()}
    assert masking < {id(p) for p in model.parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = copy.deepcopy(model.state_dict())
    run(model)
    optimizer.step()
    after = model.state_dict()
    assert all(not torch.equal(after[k], before[k]) for k in after if "network" in k)
    torch.save(after, tmp_path / "model.pth")
    other = build(masking=learned())
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    model.zero_grad()
    same(run(other), run(model))


def test_a_deep_copy_after_a_step_is_a_model_of_its_own():
    model = build(masking=learned())
    held, _ = run(model)
    twin = copy.deepcopy(model)
    assert held[0].requires_grad
    assert twin.masking is not model.masking
    model.zero_grad()
    twin.zero_grad()
    same(run(twin), run(model))


def test_schedules_move_when_the_caller_says_so():
    strength = dict(type="linear", start=-1.0, end=1.0)
    model = build(masking=learned(strength=strength))
    seen = []
    for progress in (0.0, 0.5, 1.0):
        model.masking.set_progress(progress)
        _, gradients = run(model)
        seen.append(gradients["masking.network.convolutions.0.weight"].clone())
        model.zero_grad()
        assert model.masking.strength == 2 * progress - 1
    assert not seen[1].any()
    assert torch.equal(seen[0], -seen[2])
    assert seen[2].any()


def test_the_gain_is_measured_by_the_model_s_own_forward():
    model = build(masking=learned(0.25)).eval()
    x, masks = images(), []

    def error(patch_mask):
        masks.append(patch_mask)
        return model.error_under(x, patch_mask)

    gain = adversarial_gain(error, model.masking(x))
    losses = [model.forward_loss(x, model(x, m)[1], m.mask) for m in masks]
    torch.testing.assert_close(gain, losses[0] / losses[1])


# --- forks


class WithExtras(SmallMaskedAutoencoder):
    """Its forward has another argument first, returns more and knows its ratio by keyword."""

    def forward(self, imgs, scale=1.0, *, mask_ratio=0.75):
        loss, pred, mask = super().forward(imgs, mask_ratio)
        return loss * scale / scale, pred, mask, "more"


def test_a_fork_may_take_and_return_more():
    class Ours(MaskedAutoencoderMixin, WithExtras):
        pass

    model = build(Ours, masking=learned())
    loss, _, mask, more = model(images(), 2.0, mask_ratio=0.1)
    assert (mask.sum(1) == 8).all()
    assert more == "more"
    assert loss.requires_grad


class AbsoluteError(SmallMaskedAutoencoder):
    def forward_loss(self, imgs, pred, mask):
        error = (pred - self.patchify(imgs)).abs().mean(-1)
        return (error * mask).sum() / mask.sum()


class OursAbsolute(MaskedAutoencoderMixin, AbsoluteError):
    pass


class OursMended(OursAbsolute):
    def patch_error(self, imgs, pred):
        return (pred - self.patchify(imgs)).abs().mean(-1)


def test_a_fork_with_another_loss_is_noticed_in_the_first_step():
    model = build(OursAbsolute, masking=learned())
    with pytest.raises(ValueError, match=r"OursAbsolute's own loss is 0\.9.*Override patch_error"):
        model(images())
    with pytest.raises(ValueError, match="Override patch_error"):
        model(images())
    mended = build(OursMended, masking=learned())
    _, gradients = run(mended)
    assert gradients["masking.network.convolutions.0.weight"].any()
    baseline = build(OursAbsolute, masking=RandomMasking(0.5, 8))
    same(run(baseline), run(build(AbsoluteError), mask_ratio=0.5))


def test_an_error_of_the_user_s_own_is_not_compared_with_the_loss():
    class Weighted(Learned):
        def patch_error(self, imgs, pred):
            return 2 * super().patch_error(imgs, pred)

    assert build(Weighted, masking=learned())(images())[0].isfinite()


def test_the_loss_is_checked_once_and_never_where_it_is_not_finite():
    model = build(masking=learned())
    assert not model.error_checked
    model(images())
    assert model.error_checked
    model.forward_loss = lambda imgs, pred, mask: pred.square().sum()  # not looked at again
    model(images())
    other = build(masking=learned())
    other.forward_loss = lambda imgs, pred, mask: pred.sum() * float("nan")
    assert other(images())[0].isnan()


class NoRatio(SmallMaskedAutoencoder):
    def forward(self, imgs):
        return super().forward(imgs, 0.5)


class OnlyLoss(SmallMaskedAutoencoder):
    def forward(self, imgs, mask_ratio=0.75):
        return super().forward(imgs, mask_ratio)[0]


class Pictures(SmallMaskedAutoencoder):
    def forward(self, imgs, mask_ratio=0.75):
        loss, pred, mask = super().forward(imgs, mask_ratio)
        return loss, pred.flatten(1), mask


@pytest.mark.parametrize(
    ("fork", "error", "message"),
    [
        (NoRatio, TypeError, r"travels as mask_ratio, but Ours's own forward\(imgs\) has no such"),
        (OnlyLoss, TypeError, r"return \(loss, pred, mask\), got Tensor"),
        (Pictures, ValueError, r"= \(3, 16, 192\).* got \(3, 3072\); override patch_error"),
    ],
)
def test_other_interfaces_are_refused(fork, error, message):
    class Ours(MaskedAutoencoderMixin, fork):
        pass

    model = build(Ours)
    torch.manual_seed(0)
    model(images())
    model.masking = learned()
    with pytest.raises(error, match=message):
        model(images())


class NoBlocks(SmallMaskedAutoencoder):
    def __init__(self, **options):
        super().__init__(**options)
        self.layers, self.decoder_blocks = self.decoder_blocks, nn.ModuleList()


class OtherName(SmallMaskedAutoencoder):
    def __init__(self, **options):
        super().__init__(**options)
        self.head = self.decoder_pred
        del self.decoder_pred


@pytest.mark.parametrize("fork", [NoBlocks, OtherName])
def test_a_decoder_of_other_names_is_refused_where_patches_are_left_out(fork):
    class Ours(MaskedAutoencoderMixin, fork):
        pass

    model = build(Ours, masking=learned(prediction_ratio=0.25))
    with pytest.raises(
        ValueError, match=r"expected a list decoder_blocks .* decoder_pred, but Ours .*leave predi"
    ):
        model(images())


@pytest.mark.parametrize("masking", [None, learned()])
def test_a_mask_that_the_caller_gives_may_leave_patches_out(masking):
    model = build(masking=masking)
    patch_mask = RandomMasking(0.5, 8, prediction_ratio=0.25)(images())
    _, pred, mask = model(images(), mask_ratio=patch_mask)
    assert torch.equal(mask, patch_mask.predicted)
    assert torch.equal((pred == 0).all(-1), (patch_mask.mask - mask).bool())


def test_what_is_not_a_strategy_is_refused():
    model = build()
    with pytest.raises(TypeError, match="cannot assign"):
        model.masking = dict(type="AdversarialMasking")
    model.masking = nn.Identity()
    with pytest.raises(TypeError, match=r"such as AdversarialMasking\(.*got Identity"):
        model(images())


def test_patches_of_another_shape_are_refused_even_where_their_number_is_right():
    model = build(masking=learned(patch_size=(4, 16)))
    with pytest.raises(ValueError, match=r"\(4, 16\), but Learned works on patches of \(8, 8\)"):
        model(images())


def test_grids_of_mask_images_and_model_are_one():
    """A transposed grid has as many patches."""
    model = build(masking=learned())
    wide = torch.randn(3, 3, 16, 64)
    with pytest.raises(ValueError, match=r"16 x 64 .* 2 x 8 .* Learned is built for 4 x 4; .*32 x"):
        model(wide)
    model = build(img_size=(16, 64))
    transposed = learned()(wide.mT)
    with pytest.raises(ValueError, match=r"expected .* = \(3, 2, 8\) .* got \(3, 8, 2\)"):
        model(wide, transposed)
    assert model(wide, learned()(wide))[0].isfinite()


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_patches_without_data_do_not_matter(norm_pix_loss):
    """NaN in them gives the same masks, losses and gradients as any other number."""
    got, valid = [], torch.ones(3, 4, 4, dtype=torch.bool)
    valid[0, 0] = valid[1:, 2, 1] = False
    pixels = valid.repeat_interleave(8, 1).repeat_interleave(8, 2)
    for filler in (float("nan"), 7.0):
        model = build(masking=learned(), norm_pix_loss=norm_pix_loss)
        x = images().masked_fill(~pixels[:, None], filler)
        torch.manual_seed(3)
        loss, _, mask = model(x, mask_ratio=model.masking(x, valid=valid.flatten(1)))
        loss.backward()
        assert not (mask * ~valid.flatten(1)).any()
        got.append([loss.detach(), mask, *(p.grad for p in model.parameters())])
    for one, other in zip(*got, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "options", [dict(threshold=dict(type="tracking")), dict(network=dict(channels=8))]
)
def test_the_weights_of_another_strategy_are_refused(options):
    other = build(masking=learned(random_share=0.25, **options))
    with pytest.raises(RuntimeError, match=r"masking\.(threshold\.offset|network)"):
        other.load_state_dict(build(masking=learned()).state_dict())


# --- counts that differ between images


class NoClassToken(SmallMaskedAutoencoder):
    def with_class_token(self, tokens):
        return tokens

    def forward_decoder(self, latent, ids_restore):
        first = torch.zeros_like(latent[:, :1])
        return super().forward_decoder(torch.cat([first, latent], 1), ids_restore)


class NotFused(SmallMaskedAutoencoder):
    """Attention without the fused kernel, which takes masks in another way."""

    def __init__(self, **options):
        super().__init__(**options)
        for block in [*self.blocks, *self.decoder_blocks]:
            block.attn.fused_attn = False


@pytest.mark.parametrize("fork", [NoClassToken, NotFused])
@pytest.mark.parametrize("autocast", [False, True])
def test_each_image_comes_out_as_alone(fork, autocast):
    class Ours(MaskedAutoencoderMixin, fork):
        pass

    model, x, masks = build(Ours), images(), ragged()
    tolerance = 2e-2 if autocast else 1e-5
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, pred, mask = model(x, masks)
        for row in range(3):
            one = slice(row, row + 1)
            _, single, _ = model(x[one], PatchMask.from_mask(mask[one]))
            torch.testing.assert_close(pred[one], single, atol=tolerance, rtol=0)


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel", "score_function", "ranking"])
@pytest.mark.parametrize("threshold", ["mean", "tracking"])
def test_trains_with_free_counts(threshold, estimator):
    options = dict(threshold=dict(type=threshold), estimator=dict(type=estimator))
    options["mask_ratio"] = None if threshold == "mean" else 0.5
    model = build(masking=learned(**options))
    outputs, gradients = run(model)
    assert outputs[2].sum(1).unique().numel() > 1
    assert all(g.isfinite().all() for g in gradients.values())
    assert gradients["masking.network.convolutions.0.weight"].any()


def test_equal_counts_take_the_fast_path():
    """No attention mask where a threshold with free counts happens to give equal ones."""
    threshold = dict(type="mean", ratio_range=(0.5, 0.5))
    model = build(masking=learned(None, threshold=threshold))
    seen = []

    def look(attention, args, kwargs):
        seen.append(kwargs["attn_mask"] is not None)

    for block in model.blocks:
        block.attn.register_forward_pre_hook(look, with_kwargs=True)
    model(images())
    model.masking.threshold.ratio_range = (0.1, 0.9)
    model(images())
    assert seen == [False, False, True, True]


class OldBlock(Block):
    """As timm's before version 1.0.16."""

    def forward(self, x):
        return super().forward(x)


def test_blocks_that_take_no_attention_mask_are_refused():
    model = build(masking=learned(**FREE))
    model.blocks[1] = OldBlock(16, 4)
    with pytest.raises(ValueError, match=r"OldBlock does not take.*1\.0\.16.*type='quantile'"):
        model(images())
    assert not model.blocks[0]._forward_pre_hooks
    model.masking = learned()
    assert model(images())[0].isfinite()


def test_decoders_without_mask_token_are_refused():
    class NoMaskToken(SmallMaskedAutoencoder):
        def __init__(self):
            super().__init__()
            del self.mask_token

        def forward_decoder(self, latent, ids_restore):
            return torch.zeros(3, 16, 192)

    class Ours(MaskedAutoencoderMixin, NoMaskToken):
        pass

    with pytest.raises(ValueError, match=r"Ours has no decoder_embed and mask_token.*'quantile'"):
        build(Ours, masking=learned(**FREE))(images())


class Checkpointing(nn.Module):
    """A block whose activations are computed again in backward."""

    def __init__(self, block, use_reentrant):
        super().__init__()
        self.block, self.use_reentrant = block, use_reentrant

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.use_reentrant)


class CheckpointingModel(SmallMaskedAutoencoder):
    """Checkpoints in its forward, as forks do."""

    use_reentrant = False

    def forward_encoder(self, imgs, mask_ratio):
        tokens, mask, ids_restore = self.random_masking(self.embed(imgs), mask_ratio)
        tokens = self.with_class_token(tokens)
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=self.use_reentrant)
        return self.norm(tokens), mask, ids_restore


class OursCheckpointing(MaskedAutoencoderMixin, CheckpointingModel):
    pass


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    """Refused where rows differ in length; the same gradients where they do not."""
    free = build(OursCheckpointing, masking=learned(**FREE))
    free.use_reentrant = use_reentrant
    with pytest.raises(ValueError, match=r"activation checkpointing is on.*type='quantile'"):
        free(images())
    for options in ({}, dict(prediction_ratio=0.25)):  # the decoder is not checkpointed
        equal = build(OursCheckpointing, masking=learned(**options))
        equal.use_reentrant = use_reentrant
        same(run(equal), run(build(masking=learned(**options))))
    wrapped = build(masking=learned(**FREE))
    wrapped.blocks[0] = Checkpointing(wrapped.blocks[0], use_reentrant)
    with pytest.raises(ValueError, match=r"Checkpointing does not take.*type='quantile'"):
        wrapped(images())


def test_checkpointing_the_whole_model_is_right_and_allowed():
    model, plain = (build(masking=learned(**FREE)) for _ in range(2))
    expected = run(plain)
    torch.manual_seed(3)
    outputs = checkpoint(model, images(), use_reentrant=False)
    outputs[0].backward()
    same((outputs, {name: p.grad for name, p in model.named_parameters()}), expected)


# --- imports, and the example of the docs


def test_the_mixin_itself_needs_torch_only():
    code = (
        "import sys\nsys.modules['timm'] = None\n"
        "import amn_masking.adapters.reference_mae\nprint('mmpretrain' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
