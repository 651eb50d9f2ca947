"""Methods that take their mask from the data samples."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from amn_masking.adapters.mmpretrain.methods import sample_masks
from tests.methods.matrix import LEARNED, build, error_exact, mask_exact, step


def test_the_leak_of_itpn_with_clip_s_features_is_stock_s(photos):
    """The gradient of a masked patch's prediction to its own pixels, without this package."""
    model, inputs, samples = build("iTPN (clip)", photos, ours=False)
    inputs[0].requires_grad_()
    calls = []
    model.head.loss_module.register_forward_hook(lambda m, args, out: calls.append(args))
    model.loss(inputs, samples)
    (gradient,) = torch.autograd.grad(calls[0][0][0].square().sum(), inputs[0])
    mask = samples[0].mask.float()
    side = gradient.shape[2] // mask.shape[0]
    hidden = mask.repeat_interleave(side, 0).repeat_interleave(side, 1).bool()
    assert gradient[0, :, hidden].square().sum() > 0.5 * gradient[0].square().sum()


def test_what_itpn_with_clip_s_features_shows_is_said(photos, monkeypatch):
    said = []
    monkeypatch.setattr(sample_masks, "print_log", lambda text, **options: said.append(text))
    build("iTPN (clip)", photos, masking=LEARNED)
    build("iTPN (pixel)", photos, masking=LEARNED)
    assert len(said) == 1
    assert "lets the masked pixels reach the prediction" in said[0]


def test_cae_takes_any_ratio(photos):
    """Its neck counts on 75 masked patches."""
    for ratio in (0.25, 0.75):
        masking = dict(type="RandomMasking", mask_ratio=ratio)
        model, inputs, samples = build("CAE", photos, masking=masking)
        number = model.neck.mask_token_num
        assert step(model, inputs, samples)["mask_ratio"] == ratio
        assert model.neck.mask_token_num == number


def test_simmim_takes_patches_of_whole_tokens(photos):
    masking = LEARNED | dict(patch_size=16)
    assert mask_exact("SimMIM", photos, masking=masking)
    assert error_exact("SimMIM", photos, masking=masking)
    with pytest.raises(ValueError, match="use a multiple of 4"):
        build("SimMIM", photos, masking=LEARNED | dict(patch_size=6))


def test_the_batch_s_own_samples_stay_as_they_came(photos):
    model, inputs, samples = build("SimMIM", photos, masking=LEARNED)
    before = [sample.mask.clone() for sample in samples]
    step(model, inputs, samples)
    assert all(torch.equal(a, b.mask) for a, b in zip(before, samples, strict=True))


def test_a_pipeline_needs_no_mask_generator(photos):
    model, inputs, samples = build("BEiT v1", photos, masking=LEARNED)
    for sample in samples:
        del sample.mask
    assert torch.isfinite(step(model, inputs, samples)["loss"])
