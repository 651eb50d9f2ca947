"""Patches without data in mmpretrain: no number that stands in them reaches anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmcv.transforms import BaseTransform
from mmengine.runner import set_random_seed
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample

from amn_masking import MaskingStrategy, RandomMasking
from amn_masking.adapters.mmpretrain.valid import valid_of
from amn_masking.patches import spread_to_pixels
from amn_masking.strategies import ShuffledMasking
from tests.helpers import small_mae
from tests.helpers.runner import train
from tests.methods.matrix import LEARNED, build
from tests.methods.small_methods import SMALL

OVER_ALL_PATCHES = ("MILAN", "MixMIM")


def holed(inputs, samples, grid, fill, of_pixels=False):
    """The batch with ``fill`` in a fifth of the patches of each image, and samples that say so."""
    views = inputs if isinstance(inputs, list) else [inputs]
    length = grid[0] * grid[1]
    noise = torch.rand(len(samples), length, generator=torch.Generator().manual_seed(7))
    valid = noise.argsort(1) >= length // 5
    shown = [spread_to_pixels(valid, grid, *view.shape[2:]) for view in views]
    views = [view.where(where, fill) for view, where in zip(views, shown, strict=True)]
    for sample, patches, pixels in zip(samples, valid, shown[0][:, 0], strict=True):
        sample.set_field(pixels if of_pixels else patches, "valid")
    return views if isinstance(inputs, list) else views[0], samples, valid


def grid_of(model, inputs):
    view = inputs[0] if isinstance(inputs, list) else inputs
    return tuple(
        n // side for n, side in zip(view.shape[2:], model.masking.patch_size, strict=True)
    )


@pytest.mark.parametrize("label", [label for label in SMALL if label not in OVER_ALL_PATCHES])
def test_what_stands_where_there_is_no_data_changes_nothing(label, photos):
    results = []
    for fill in (7.0, float("nan")):
        model, inputs, samples = build(label, photos, masking=LEARNED)
        inputs, samples, valid = holed(inputs, samples, grid_of(model, inputs), fill)
        masks = []
        model.masking.register_forward_hook(lambda m, args, out, kept=masks: kept.append(out))
        set_random_seed(3)
        losses = model.loss(inputs, samples)
        model.parse_losses(losses)[0].backward()
        assert torch.equal(masks[0].valid, valid)
        assert masks[0].mask[valid].any()
        assert not masks[0].mask[~valid].any()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append(losses | gradients)
    one, other = results
    assert one.keys() == other.keys()
    for name in one:
        assert torch.isfinite(other[name]).all(), name
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("label", OVER_ALL_PATCHES)
def test_a_method_whose_loss_is_over_all_patches_refuses(label, photos):
    model, inputs, samples = build(label, photos, masking=LEARNED)
    inputs, samples, _ = holed(inputs, samples, grid_of(model, inputs), 0.0)
    with pytest.raises(ValueError, match=f"{label} cannot leave patches without data out of its"):
        model.loss(inputs, samples)


class OwnValid(MaskingStrategy):
    """Says itself where there is no data."""

    takes_ratio = True

    def forward(self, images, generator=None):
        made = RandomMasking(self.mask_ratio, self.patch_size)(images)
        valid = torch.ones_like(made.mask, dtype=torch.bool)
        valid[:, 0] = False
        return RandomMasking(self.mask_ratio, self.patch_size)(images, valid=valid)


def test_a_mask_of_one_s_own_that_says_valid_is_honoured():
    model = small_mae.build(masking=OwnValid(8, 0.5))
    images = torch.randn(2, 3, 32, 32)
    images[:, :, :8, :8] = float("nan")
    assert torch.isfinite(model.loss(images, [])["loss"])
    patch_mask, pictures = model.reconstruct(images)
    assert not patch_mask.mask[:, 0].any()
    assert torch.isfinite(pictures).all()


class Deaf(MaskingStrategy):
    """Takes ``valid`` and forgets it."""

    takes_ratio = True

    def forward(self, images, generator=None, valid=None):
        return RandomMasking(self.mask_ratio, self.patch_size)(images)


@pytest.mark.parametrize("wrap", [lambda own: own, ShuffledMasking])
def test_a_strategy_of_one_s_own_that_forgets_valid_is_refused(wrap):
    model = small_mae.build(masking=wrap(Deaf(8, 0.5)))
    images, samples, _ = holed(
        torch.randn(2, 3, 32, 32), [DataSample() for _ in range(2)], (4, 4), 0.0
    )
    samples[1] = samples[0]  # alike, as ShuffledMasking wants them
    with pytest.raises(ValueError, match="Deaf was given valid=, but its PatchMask has no"):
        model.loss(images, samples)


def test_pixels_say_the_same_as_patches():
    found = []
    for of_pixels in (True, False):
        model = small_mae.build(masking=dict(LEARNED))
        samples = [DataSample() for _ in range(3)]
        inputs, samples, valid = holed(
            torch.randn(3, 3, 32, 32), samples, (4, 4), float("nan"), of_pixels
        )
        torch.manual_seed(3)
        patch_mask = model.make_mask(inputs, samples)
        assert torch.equal(patch_mask.valid, valid)
        found.append(patch_mask.mask)
    assert torch.equal(*found)


def test_the_error_under_a_given_mask_has_its_valid_patches():
    model = small_mae.build(masking=dict(LEARNED))
    images, samples = torch.randn(2, 3, 32, 32), [DataSample() for _ in range(2)]
    inputs, samples, _ = holed(images, samples, (4, 4), float("nan"))
    patch_mask = model.make_mask(inputs, samples)
    error = model.error_under(patch_mask, inputs, samples)
    assert torch.equal(error, model.error_under(patch_mask, patch_mask.fill_invalid(images), []))
    with pytest.raises(ValueError, match=r"finite|NaN"):
        model.make_mask(inputs)
    whole = replace(patch_mask, valid=None)
    assert torch.isnan(model.error_under(whole, inputs, samples)).any()


def test_samples_that_say_nothing_give_none():
    images = torch.zeros(2, 3, 8, 8)
    assert valid_of([], images) is None
    assert valid_of([DataSample(), DataSample()], images) is None


def test_arrays_are_taken_and_a_part_of_a_batch_is_refused():
    images = torch.zeros(2, 3, 8, 8)
    samples = [
        DataSample(valid=np.array([True, False])),
        DataSample(valid=torch.tensor([True] * 2)),
    ]
    assert valid_of(samples, images).tolist() == [[True, False], [True, True]]
    with pytest.raises(ValueError, match=r"one shape.*'\(2,\)', 'None'.*set it in every sample"):
        valid_of([samples[0], DataSample()], images)
    with pytest.raises(ValueError, match=r"'\(2,\)', '\(3,\)'"):
        valid_of([samples[0], DataSample(valid=np.ones(3, bool))], images)


@TRANSFORMS.register_module()
class Hole(BaseTransform):
    """A corner of the picture without data, as NaN, somewhere; and where there is data."""

    def transform(self, results):
        picture = results["img"].astype(np.float32)
        top, left = np.random.randint(0, 48, 2)
        picture[top : top + 16, left : left + 16] = np.nan
        return results | dict(img=picture, valid=np.isfinite(picture).all(2))


@pytest.mark.parametrize("say", [True, False])
def test_a_run_on_pictures_with_holes(photos_config, say):
    """By the pipeline alone; the hooks that measure and draw take the same batch."""
    pipeline = photos_config.train_dataloader.dataset.pipeline
    pack = pipeline.pop()
    pipeline.append(dict(type="Hole"))
    pipeline.append(dict(pack, algorithm_keys=("valid",) if say else ()))
    hooks = [
        dict(type="MaskingMetersHook", interval=2),
        dict(type="MaskingPicturesHook", interval=1),
    ]
    if not say:
        with pytest.raises(ValueError, match="in mmpretrain the samples' 'valid'"):
            train(photos_config, custom_hooks=hooks[:1])
        return
    runner = train(photos_config, custom_hooks=hooks)
    for name in ("loss", "adversarial", "adversarial_gain", "random_mask_error"):
        logged, _ = runner.message_hub.get_scalar(f"train/{name}").data
        assert np.isfinite(logged).all(), name
    drawing = [hook for hook in runner.hooks if type(hook).__name__ == "MaskingPicturesHook"]
    assert not drawing[0].failed
