"""What mmpretrain's users set, give or leave out is followed, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import HOOKS
from mmpretrain.registry import MODELS

from amn_masking import AdversarialMasking, MaskingStrategy, PatchMask
from amn_masking.thresholds import Threshold
from tests.helpers.runner import train
from tests.helpers.small_mae import build, config, step


@pytest.mark.parametrize("kind", ["RandomMasking", "AdversarialMasking", "HardPatchMasking"])
def test_a_strategy_without_a_ratio_follows_the_backbone_s(kind):
    """A hook that moves ``backbone.mask_ratio`` is followed as by the stock method."""
    stock, ours = build("MAE"), build(masking=dict(type=kind))
    for ratio in (0.75, 0.25, 0.5):
        stock.backbone.mask_ratio = ours.backbone.mask_ratio = ratio
        (one, _), (other, _) = step(stock), step(ours)
        assert other["mask_ratio"] == ratio
        if kind == "RandomMasking":
            assert torch.equal(one["loss"], other["loss"])


def test_so_does_one_within_a_wrapper():
    model = build(masking=dict(type="ShuffledMasking", masking=dict(type="AdversarialMasking")))
    model.backbone.mask_ratio = 0.25
    assert step(model)[0]["mask_ratio"] == 0.25


@pytest.mark.parametrize("ratio", [0.5, dict(type="linear", start=0.5, end=0.25)])
def test_a_ratio_of_the_strategy_s_own_makes_the_backbone_s_refused(ratio):
    model = build(masking=dict(type="AdversarialMasking", mask_ratio=ratio))
    assert step(model)[0]["mask_ratio"] == 0.5
    model.backbone.mask_ratio = 0.25
    with pytest.raises(ValueError, match=r"from 0\.75 to 0\.25, but AdversarialMasking has its"):
        step(model)


def test_the_strategy_s_ratio_may_be_set_in_training():
    model = build(masking=dict(type="AdversarialMasking"))
    model.masking.mask_ratio = 0.25
    assert step(model)[0]["mask_ratio"] == 0.25


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_method_s_ratio_that_moves_is_refused_where_the_ratio_is_drawn(shuffled):
    masking = dict(type="RandomRatioMasking", masking=dict(type="AdversarialMasking"))
    model = build(masking=dict(type="ShuffledMasking", masking=masking) if shuffled else masking)
    step(model)
    model.backbone.mask_ratio = 0.9
    with pytest.raises(ValueError, match="RandomRatioMasking draws the ratio and takes no mask_ra"):
        step(model)


def test_a_method_s_ratio_that_moves_below_what_is_predicted_is_refused():
    model = build(masking=dict(type="AdversarialMasking", prediction_ratio=0.5))
    assert step(model)[0]["prediction_ratio"] == 0.5
    model.backbone.mask_ratio = 0.25
    with pytest.raises(ValueError, match=r"prediction_ratio=0\.5 is a part .* mask_ratio=0\.25"):
        step(model)


def test_a_part_is_predicted_where_the_ratio_is_drawn():
    inner = dict(type="AdversarialMasking", prediction_ratio=0.25)
    model = build(masking=dict(type="RandomRatioMasking", masking=inner, ratio_range=(0.3, 0.9)))
    losses = [step(model, seed)[0] for seed in range(4)]
    assert len({float(loss["mask_ratio"]) for loss in losses}) > 1
    assert all(loss["prediction_ratio"] == 0.25 for loss in losses)


@HOOKS.register_module()
class SetRatioHook(Hook):
    """Moves the backbone's ratio as a user's curriculum would."""

    def before_train_epoch(self, runner):
        runner.model.backbone.mask_ratio = 0.25 + 0.25 * runner.epoch


def test_a_hook_of_the_user_s_is_followed_in_a_run(photos_config):
    photos_config.model.masking.mask_ratio = None
    runner = train(photos_config, custom_hooks=[dict(type="SetRatioHook")])
    ratios = runner.message_hub.get_scalar("train/mask_ratio").data[0].tolist()
    assert ratios == pytest.approx([0.25] * 3 + [0.5] * 3)


def test_images_that_do_not_fit_the_encoder_are_refused_before_it():
    model = build(masking=dict(type="AdversarialMasking"))
    model.backbone.register_forward_pre_hook(lambda *args: pytest.fail("the encoder was called"))
    with pytest.raises(
        ValueError, match=r"64 x 64 pixels have 8 x 8 patches.*MAE's MAEViT is built for 4 x 4; res"
    ):
        model.loss(torch.randn(2, 3, 64, 64), [])


def test_a_neck_left_at_another_size_is_named():
    neck = config()["neck"] | dict(num_patches=196)
    model = build(masking=dict(type="RandomMasking"), neck=neck)
    with pytest.raises(ValueError, match=r"= 16 patches, but neck.num_patches of MAE is for 196"):
        model.loss(torch.randn(2, 3, 32, 32), [])


def test_a_list_of_single_images_names_the_collate_function():
    model = build(masking=dict(type="RandomMasking"))
    with pytest.raises(ValueError, match=r"list of \(3, 32, 32\).*pseudo_collate.*default_coll"):
        model.loss([torch.randn(3, 32, 32)] * 2, [])


@pytest.mark.parametrize(
    ("threshold", "ratio", "message"),
    [
        (dict(type="quantile", mask_ratio=0.8), None, "the ratio is the strategy's own argument"),
        (dict(type="mean"), 0.5, "takes no mask_ratio"),
    ],
)
def test_a_ratio_that_nothing_takes_is_refused(threshold, ratio, message):
    masking = dict(type="AdversarialMasking", threshold=threshold, mask_ratio=ratio)
    with pytest.raises((TypeError, ValueError), match=message):
        build(masking=masking)


def test_a_threshold_without_a_ratio_leaves_the_method_s_alone():
    masking = dict(type="AdversarialMasking", threshold=dict(type="mean"), standardise=False)
    model = build(masking=masking)
    assert model.masking.mask_ratio is None
    step(model)
    model.backbone.mask_ratio = 0.5
    with pytest.raises(ValueError, match="Mean chooses the number of masked patches by itself"):
        step(model)


class HalfOfThem(Threshold):
    """A user's own."""

    def forward(self, candidates):
        return candidates.select(candidates.length // 2)


class Checkerboard(MaskingStrategy):
    """A user's own, which knows images and nothing else."""

    def forward(self, images, generator=None):
        h, w = self.grid(images)
        mask = (torch.arange(h)[:, None] + torch.arange(w)) % 2
        return PatchMask.from_mask(mask.expand(len(images), h, w))


def test_objects_and_classes_of_one_s_own_compose_in_a_config():
    masking = dict(type=AdversarialMasking, threshold=dict(type=HalfOfThem))
    assert step(build(masking=masking))[0]["mask_ratio"] == 0.5
    masking = dict(type="AdversarialMasking", threshold=HalfOfThem())
    assert step(build(masking=masking))[0]["mask_ratio"] == 0.5
    masking = dict(type="ShuffledMasking", masking=Checkerboard(patch_size=8))
    losses, _ = step(build(masking=masking))
    assert losses["mask_ratio"] == 0.5
    assert "strength" not in losses


def test_the_log_goes_through_wrappers():
    masking = dict(
        type="ShuffledMasking",
        masking=dict(
            type="AdversarialMasking",
            threshold=dict(type="difficulty", target_gain=0.8),
            random_share=0.5,
            strength=-0.5,
        ),
    )
    losses, _ = step(build(masking=masking))
    assert losses["strength"] == -0.5
    assert {"threshold", "score_spread", "running_gain"} <= losses.keys()


@MODELS.register_module()
class Channels(BaseDataPreprocessor):
    """Photographs as images of another number of channels, in [0, 1]."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, data, training=False):
        images = torch.stack(data["inputs"]) if isinstance(data["inputs"], list) else data["inputs"]
        images = images.float() / 255
        more = images.mean(1, keepdim=True).expand(-1, self.number, -1, -1).contiguous()
        return dict(inputs=more, data_samples=data["data_samples"])


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_pictures_of_any_number_of_channels_do_not_stop_a_run(photos_config, tmp_path, channels):
    """Images with other channels are made of the photographs by a hook of the test."""
    photos_config.model.backbone.patch_cfg = dict(in_channels=channels)
    photos_config.model.neck.in_chans = photos_config.model.head.in_channels = channels
    photos_config.model.data_preprocessor = dict(type="Channels", number=channels)
    train(photos_config, custom_hooks=[dict(type="MaskingPicturesHook")])
    assert len(list(tmp_path.glob("*/vis_data/vis_image/*.png"))) == 3


def test_a_picture_that_fails_is_said_once_and_never_stops_a_run(photos_config, monkeypatch):
    from amn_masking.adapters.mmpretrain.runner import pictures_hook

    def fail(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(pictures_hook, "draw_masks", fail)
    runner = train(photos_config, custom_hooks=[dict(type="MaskingPicturesHook")])
    assert runner.iter == 6
    (log,) = Path(runner.work_dir).glob("*/*.log")
    assert log.read_text().count("draws no pictures in this run: RuntimeError: no ink") == 1
