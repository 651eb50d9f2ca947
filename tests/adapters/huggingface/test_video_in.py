"""transformers' VideoMAE under a strategy, tubes above all; most laws are the contract's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra 'huggingface'")

from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from amn_masking import PatchMask, RandomMasking
from amn_masking.adapters.huggingface import masked_forward
from amn_masking.patches import masked_mean
from amn_masking.strategies import BlockMasking, TubeMasking
from tests.adapters.huggingface.test_trainer import FIRST, assert_equal, train, weights
from tests.helpers.small_video_mae import PATCH, SIZE, TUBE, adversarial, build, clips, tubes

STRATEGIES = {
    "space and time": lambda: RandomMasking(0.6, PATCH),
    "tubes": lambda: TubeMasking(RandomMasking(0.6, TUBE), 2),
    "blocks": lambda: TubeMasking(BlockMasking(0.6, TUBE, min_patches=2), 2),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_mask_s_pass_is_the_stock_model_s_bit_for_bit(name):
    """Loss, predictions and every gradient, under the same mask."""
    got = []
    for stock in (False, True):
        model, strategy = build(), STRATEGIES[name]()
        torch.manual_seed(3)
        if stock:
            mask = strategy(clips().transpose(1, 2)).mask.bool()
            outputs = model(clips(), bool_masked_pos=mask)
        else:
            outputs = masked_forward(model, clips(), strategy).outputs
        outputs.loss.backward()
        gradients = [p.grad for p in model.parameters()]
        got.append([outputs.loss, outputs.logits, *gradients])
    assert all(map(torch.equal, *got))


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize(("channels", "norm_pix_loss"), [(3, False), (3, True), (1, True)], ids=str)
def test_the_error_is_that_of_a_slow_reference(channels, norm_pix_loss, left_out):
    """Patch by patch, from the pixels of its two frames."""
    model = build(num_channels=channels, norm_pix_loss=norm_pix_loss)
    video = clips()[:, :, :channels]
    options = dict(prediction_ratio=0.25) if left_out else {}
    masking = tubes(network=dict(in_channels=channels), **options)
    done = masked_forward(model, video, masking)
    grid, predicted = done.patch_mask.grid, done.patch_mask.predicted.bool()
    for clip in range(len(video)):
        ids = predicted[clip].nonzero().flatten().tolist()
        assert len(ids) == done.outputs.logits.shape[1] == (4 if left_out else 8)
        for rank, patch in enumerate(ids):
            slot, row, column = (int(i) for i in torch.unravel_index(torch.tensor(patch), grid))
            rows, columns = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
            pixels = video[clip, 2 * slot : 2 * slot + 2, :, rows, columns].movedim(1, -1)
            if channels == 3:
                pixels = pixels * torch.tensor(IMAGENET_DEFAULT_STD)
                pixels = pixels + torch.tensor(IMAGENET_DEFAULT_MEAN)
            pixels = pixels.reshape(-1, channels)
            if norm_pix_loss:
                pixels = (pixels - pixels.mean(0)) / (pixels.std(0) + 1e-6)
            expected = (done.outputs.logits[clip, rank] - pixels.flatten()).square().mean()
            torch.testing.assert_close(done.error[clip, patch], expected, rtol=1e-4, atol=1e-6)
    mean = masked_mean(done.error, done.patch_mask.predicted)
    torch.testing.assert_close(mean, done.reconstruction, rtol=1e-6, atol=0)
    assert done.outputs.loss > done.reconstruction


@pytest.mark.parametrize("left_out", [False, True])
def test_what_is_masked_is_not_seen(left_out):
    """Other pixels in a masked patch, predicted or left out, change no prediction."""
    patch_mask = tubes(**dict(prediction_ratio=0.25) if left_out else {})(clips().transpose(1, 2))
    patch_mask = patch_mask.detach()
    assert (patch_mask.num_left_out == 4) == left_out
    hidden = patch_mask.pixel_mask(*SIZE).transpose(1, 2)
    model, other = build(), clips(seed=4)
    one, two, shown = (
        masked_forward(model, video, patch_mask).outputs.logits
        for video in (clips(), clips() + hidden * other, clips() + (1 - hidden) * other)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, shown)


def test_the_left_out_are_in_no_layer():
    """The decoder's tokens are the same as in a clip that has no other patches."""
    patch_mask = tubes(prediction_ratio=0.25)(clips().transpose(1, 2)).detach()
    model, seen = build().eval(), []
    model.decoder.decoder_layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    masked_forward(model, clips(), patch_mask)
    visible = patch_mask.mask == 0
    encoded = model.videomae(clips(), bool_masked_pos=~visible).last_hidden_state
    places = model.position_embeddings.expand(len(visible), -1, -1)
    predicted = places[patch_mask.predicted.bool()].unflatten(0, (len(visible), -1))
    encoded = model.encoder_to_decoder(encoded) + places[visible].unflatten(0, (len(visible), -1))
    expected = torch.cat([encoded, model.mask_token + predicted], 1)
    assert seen[0].shape[1] == 8 + 4
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("of_pixels", [False, True])
@pytest.mark.parametrize("make", [adversarial, tubes])
def test_patches_without_data_do_not_matter(make, of_pixels):
    """NaN in them gives the same masks, loss and gradients as any other number."""
    holes = torch.zeros(6, 2, 2, 4, dtype=torch.bool)
    holes[:, 0, 0, 1] = holes[0, 1, 1] = True
    holes[0, 1, 1, :2] = False
    pixels = holes.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    valid = ~pixels if of_pixels else ~holes.flatten(1)
    got = []
    for filler in (float("nan"), 7.0):
        model, masking = build(), make(mask_ratio=0.4)
        torch.manual_seed(3)
        video = clips().masked_fill(pixels[:, :, None], filler)
        done = masked_forward(model, video, masking, valid=valid)
        done.outputs.loss.backward()
        assert not (done.patch_mask.mask * holes.flatten(1)).any()
        gradients = [p.grad for p in [*model.parameters(), *masking.parameters()]]
        got.append([done.outputs.loss.detach(), done.patch_mask.mask, *gradients])
    for one, other in zip(*got, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_where_tubes_are_left_out(use_reentrant):
    got = []
    for checkpointing in (False, True):
        model = build(masking := tubes(prediction_ratio=0.25))
        if checkpointing:
            model.gradient_checkpointing_enable(dict(use_reentrant=use_reentrant))
        torch.manual_seed(3)
        done = masked_forward(model, clips(), masking)
        done.outputs.loss.backward()
        got.append([done.outputs.loss.detach(), *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *got))


def test_what_does_not_fit_is_refused():
    model, ragged = (
        build(),
        PatchMask.from_mask(torch.arange(16) < torch.tensor([[2], [3]]), (2, 2, 4)),
    )
    places = tubes().masking(clips().transpose(1, 2)).detach()
    free = dict(threshold=dict(type="mean"), mask_ratio=None)
    normalised = dict(reward="variance_normalised")
    mask = dict(bool_masked_pos=torch.ones(6, 16).bool())
    cases = [
        (clips(), adversarial(patch_size=8), {}, r"\(8, 8\), but VideoMAE.* \(2, 8, 8\)"),
        (clips(), TubeMasking(adversarial(patch_size=TUBE), 4), {}, r"\(4, 8, 8\) in 4 slots, but"),
        (clips(), adversarial(patch_size=TUBE), {}, r"\(2, 8, 8\), or, for tubes.*, slots=2\)"),
        (clips(), places, {}, r"\(6, 2, 2, 4\) for .* got \(6, 1, 2, 4\)"),
        (clips(), tubes(**free), {}, "leaves the count free.*quantile"),
        (clips(2), ragged, {}, r"those of this mask differ.*type='quantile'"),
        (clips(), tubes(gate=True), {}, "leave out gate=True"),
        (clips(), tubes(**normalised), {}, "switch norm_pix off"),
        (clips(), tubes(loss=dict(criterion="L1")), {}, "says criterion='L1', but VideoMAE"),
        (clips(), tubes(), mask, "bool_masked_pos expected from the strategy alone"),
        (clips().transpose(1, 2), tubes(), {}, r"frames before the 3 channels.*ose\(1, 2\)"),
        (clips()[:, 0], tubes(), {}, r"got \(6, 3, 16, 32\)"),
        (clips(size=(8, 16, 32)), adversarial(), {}, "4 x 2 x 4 patches .* built for 2 x 2 x 4"),
        (clips(size=(4, 32, 16)), adversarial(), {}, "2 x 4 x 2 patches .* built for 2 x 2 x 4"),
    ]  # fmt: skip
    for video, masking, options, message in cases:
        with pytest.raises(ValueError, match=message):
            masked_forward(model, video, masking, **options)
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


def data():
    return [{"pixel_values": clip} for clip in clips()]


def test_trainer_trains_both_networks_by_tubes(tmp_path):
    model = build(tubes(strength=dict(start=-1, end=1)))
    before = weights(model)
    trainer = train(tmp_path, model, data=data(), label_names=["pixel_values"], max_steps=2)
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["reconstruction"] > 0
    assert entry["adversarial_gain"] > 0
    assert entry["mask_ratio"] == 0.5
    assert entry["strength"] == pytest.approx(-0.5)  # the mean of -1 and 0
    within = FIRST.replace("masking.", "masking.masking.", 1)
    for name in (within, "videomae.encoder.layer.0.output.dense.weight", "mask_token"):
        assert not torch.equal(before[name], weights(model)[name])
    with torch.no_grad():
        expected = masked_forward(model.eval(), clips(), model.masking).reconstruction
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    options = dict(data=data(), max_steps=3, save_strategy="steps", save_steps=2, logging_steps=3)
    whole = build(tubes())
    train(tmp_path / "whole", whole, **options)
    resumed = build(tubes())
    train(tmp_path / "again", resumed, resume=str(tmp_path / "whole/checkpoint-2"), **options)
    assert_equal(weights(whole), weights(resumed))
