"""MaskingMetersHook in a real Runner: what it measures, where that arrives, when it warns."""

from __future__ import annotations

import json
import re
from copy import deepcopy

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from amn_masking import PatchMask
from amn_masking.adapters.mmpretrain.runner.meters_hook import MaskingMetersHook
from amn_masking.adapters.mmpretrain.runner.resume import load_from_local
from tests.helpers.runner import train
from tests.helpers.small_mae import build
from tests.methods.small_methods import small_config

LOGGED = {
    "adversarial_gain",
    "random_mask_error",
    "position_entropy",
    "mask_distance",
    "score_entropy",
}


def meters(**options):
    return dict(type="MaskingMetersHook", **(dict(interval=1) | options))


def history(runner, key):
    return runner.message_hub.get_scalar(f"train/{key}").data[0].tolist()


# --- error_under


@pytest.mark.parametrize(
    "head_loss",
    [
        dict(type="PixelReconstructionLoss", criterion="L2"),
        dict(type="CombinedAdversarialLoss", lambda_adv=0.7),
        dict(type="CombinedAdversarialLoss", lambda_adv=0.7, reconstruct="all"),
    ],
    ids=["stock head", "combined head", "combined head over all patches"],
)
@pytest.mark.parametrize("free", [False, True], ids=["equal counts", "free counts"])
def test_error_under_a_mask_is_that_of_each_patch(head_loss, free):
    head = dict(type="MAEPretrainHead", norm_pix=True, patch_size=8, loss=head_loss)
    model = build(masking=dict(type="AdversarialMasking"), head=head)
    mask = torch.zeros(3, 16)
    for row in range(3):
        mask[row, torch.randperm(16)[: 4 + 3 * row * free]] = 1
    patch_mask, images = PatchMask.from_mask(mask), torch.randn(3, 3, 32, 32)
    error = model.error_under(patch_mask, images, [])
    assert not error.requires_grad
    # By hand: every patch by itself.
    with torch.no_grad(), model.inject(patch_mask):
        latent, _, ids_restore = model.backbone(images)
        pred, target = model.neck(latent, ids_restore), model.head.construct_target(images)
    for i in range(3):
        for j in range(16):
            expected = float((pred[i, j] - target[i, j]).square().mean())
            assert error[i, j].item() == pytest.approx(expected, rel=1e-5)


# --- the hook


@HOOKS.register_module()
class GainByHand(Hook):
    """The gain again, in code of its own, from a copy of the model: before MaskingMetersHook."""

    priority = "HIGH"

    def __init__(self):
        self.gains, self.errors = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = deepcopy(runner.model)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(runner.iter)  # as MaskingMetersHook has it
            inputs = model.data_preprocessor(data_batch, True)["inputs"]
            learned = model.masking(inputs)
            order = torch.rand(learned.mask.shape).argsort(1)
            masked = learned.mask.sum(1).long().tolist()
            random = torch.zeros_like(learned.mask)
            for row, count in enumerate(masked):
                random[row, order[row, len(order[row]) - count :]] = 1
            means = []
            for mask in (learned.mask, random):
                with model.inject(PatchMask.from_mask(mask)):
                    latent, _, ids_restore = model.backbone(inputs)
                    pred = model.neck(latent, ids_restore)
                error = (pred - model.head.construct_target(inputs)).square().mean(-1)
                means.append(float((error * mask).sum() / mask.sum()))
        self.gains.append(means[0] / means[1])
        self.errors.append(means[1])


@pytest.mark.parametrize("threshold", ["quantile", "tracking"])
def test_the_gain_is_learned_over_random_error_on_the_step_s_batch(photos_config, threshold):
    hooks = [dict(type="GainByHand"), meters()]
    options = {"model.masking.threshold": dict(type=threshold)}
    runner = train(photos_config, custom_hooks=hooks, **options)
    (by_hand,) = (hook for hook in runner.hooks if isinstance(hook, GainByHand))
    assert len(by_hand.gains) == 6
    assert history(runner, "adversarial_gain") == pytest.approx(by_hand.gains, rel=1e-4)
    assert history(runner, "random_mask_error") == pytest.approx(by_hand.errors, rel=1e-4)


def test_random_masking_has_a_gain_of_about_one_and_no_scores(photos_config):
    options = {
        "model.masking": dict(_delete_=True, type="RandomMasking"),
        "train_cfg.max_epochs": 15,
    }
    runner = train(photos_config, custom_hooks=[meters()], **options)
    gains = torch.tensor(history(runner, "adversarial_gain"))
    assert len(gains) == 45
    # Two draws, not one: the gain has a spread, and its mean is within 5 standard errors of 1.
    assert gains.std() > 0.005
    assert abs(gains.mean() - 1) < 5 * gains.std() / 45**0.5
    assert "train/score_entropy" not in runner.message_hub.log_scalars


@pytest.mark.parametrize("loss_is_in", ["strategy", "head"])
def test_hard_masks_have_a_gain_above_one_and_easy_ones_below(photos_config, loss_is_in):
    """A network whose weights make it read how far from grey a patch is; the target is pixels."""
    gains = {}
    for sign in (1, -1):
        options = {
            "model.masking.network": dict(num_layers=2, channels=2, downsample=1),
            "model.masking.estimator": dict(type="straight_through", noise=0.0),
            "model.head.norm_pix": False,
            "optim_wrapper.paramwise_cfg.custom_keys.masking.lr_mult": 0.0,
        }
        if loss_is_in == "head":
            options["model.head.loss"] = dict(type="CombinedAdversarialLoss", lambda_adv=0.5)
            options["model.masking.loss"] = None  # there is one lambda
        hooks = [dict(type="SetWeights", sign=sign), meters()]
        runner = train(photos_config, custom_hooks=hooks, **options)
        gains[sign] = sum(history(runner, "adversarial_gain")) / 6
    assert gains[1] > 1.3
    assert gains[-1] < 0.8


@HOOKS.register_module()
class SetWeights(Hook):
    """Weights of a two-layer network. ``sign``: +1 likes what is far from grey, -1 what is near.
    None: sees the image's border and nothing of the image.
    """

    def __init__(self, sign=None):
        self.sign = sign

    def before_train(self, runner):
        first, last = (
            layer for layer in runner.model.masking.network.convolutions if hasattr(layer, "weight")
        )
        with torch.no_grad():
            for layer in (first, last):
                layer.weight.zero_()
                layer.bias.zero_()
            if self.sign is None:
                first.bias.fill_(1.0)
                last.weight.fill_(0.1)  # zero padding: less at the border
            else:
                first.weight[0, :, 1, 1] = 1.0
                first.weight[1, :, 1, 1] = -1.0
                last.weight[:, :, 1, 1] = 0.3 * self.sign


def test_training_with_the_hook_is_bit_identical(photos_config):
    """With free counts, whose offset moves in train(), and dropout."""
    options = {
        "model.masking.threshold": dict(type="tracking"),
        "model.backbone.drop_rate": 0.2,
        "model.backbone.drop_path_rate": 0.2,
        "train_cfg.max_epochs": 3,
    }
    hooks = ([], [meters()], [dict(type="OneMoreForward")])
    runs = [train(photos_config, custom_hooks=own, **options) for own in hooks]
    without, measured, other = (run.model.state_dict() for run in runs)
    assert without["masking.threshold.offset"] != 0
    assert list(without) == list(measured)
    for name, tensor in without.items():
        assert torch.equal(tensor, measured[name]), name
    for key in ("loss", "mask_ratio"):
        assert history(runs[0], key) == history(runs[1], key)
    assert runs[1].model.training
    hooked = [list(run.model.masking._forward_hooks.values()) for run in runs[:2]]
    assert hooked[0] == hooked[1]
    # It could have been different: each of the two is moved by a careless forward pass.
    assert history(runs[0], "loss") != history(runs[2], "loss")
    assert without["masking.threshold.offset"] != other["masking.threshold.offset"]


@HOOKS.register_module()
class OneMoreForward(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        with torch.no_grad():
            runner.model.loss(**runner.model.data_preprocessor(data_batch, True))


@pytest.mark.slow
@pytest.mark.parametrize("label", ["SimMIM", "BEiT v2", "CAE", "SparK", "MixMIM"])
def test_other_methods_are_measured_and_not_disturbed(label, photos, tmp_path):
    """Stock recipes, smaller: a mask in the data sample; a codebook and a running copy of the
    weights that every forward pass moves, with the inputs in lists; BatchNorm; one mask a batch.
    """
    states = []
    for hooks in ([meters()], []):
        cfg = small_config(label, photos, masking=dict(type="AdversarialMasking"))
        cfg.work_dir, cfg.randomness = str(tmp_path), dict(seed=0)
        cfg.train_dataloader.dataset.indices = 24
        cfg.custom_hooks = hooks
        runner = train(cfg)
        if hooks:
            gains = torch.tensor(history(runner, "adversarial_gain"))
            assert len(gains) == 3
            assert torch.isfinite(gains).all()
            assert gains.ne(1).all()
        states.append(runner.model.state_dict())
    for name, tensor in states[1].items():
        assert torch.equal(tensor, states[0][name]), name


# --- where it arrives


def test_the_scalars_reach_the_local_and_the_tensorboard_backend(photos_config, tmp_path):
    """Measured at every second of six steps, logged at each: the last value stands."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    runner = train(
        photos_config,
        custom_hooks=[meters(interval=2)],
        visualizer=dict(type="UniversalVisualizer", vis_backends=backends),
        **{"default_hooks.logger.interval": 1},
    )
    runner.visualizer.close()
    (path,) = tmp_path.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 6
    events = EventAccumulator(str(path.parent)).Reload()
    for key in sorted(LOGGED):
        measured = history(runner, key)
        assert len(measured) == (2 if key == "position_entropy" else 3)  # nothing counted at first
        logged = [value for value in measured for _ in range(2)]  # not smoothed either
        assert [row[key] for row in rows if key in row] == pytest.approx(logged), key
        assert [event.value for event in events.Scalars(key)] == pytest.approx(logged), key
        assert [event.step for event in events.Scalars(key)][-1] == 6
    (log,) = tmp_path.glob("*/*.log")
    assert "adversarial_gain: " in log.read_text()


def test_mmengine_does_not_smooth_what_is_measured_now_and_then(photos_config):
    """Nor the numbers of the masks, which are means already."""
    pattern = Runner.from_cfg(photos_config).log_processor.mean_pattern
    assert all(re.search(pattern, key) for key in ("loss", "data_time", "grad_norm"))
    ours = {"reconstruction", "adversarial", "score_spread", "mask_ratio", *LOGGED}
    assert not any(re.search(pattern, key) for key in ours)


def test_one_image_a_batch_has_no_distance(photos_config):
    runner = train(
        photos_config,
        custom_hooks=[meters(interval=20)],
        **{"train_dataloader.batch_size": 1, "train_cfg.max_epochs": 1},
    )
    assert "train/mask_distance" not in runner.message_hub.log_scalars
    assert len(history(runner, "adversarial_gain")) == 3


def test_only_training_s_masks_are_counted(photos_config):
    """Neither those of a measurement nor those of a picture."""
    hooks = [meters(interval=2), dict(type="MaskingPicturesHook", interval=1, by_epoch=False)]
    runner = train(photos_config, custom_hooks=hooks)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, MaskingMetersHook))
    assert hook.positions.batches == {(4, 4): 6}


def test_the_running_shares_are_in_the_checkpoint(photos_config, tmp_path):
    first = train(photos_config, custom_hooks=[meters()])
    second = MaskingMetersHook()
    checkpoint = load_from_local(str(tmp_path / "epoch_2.pth"))
    second.after_load_checkpoint(first, checkpoint)
    (hook,) = (hook for hook in first.hooks if isinstance(hook, MaskingMetersHook))
    assert second.positions.batches == {(4, 4): 6}
    assert torch.equal(second.positions.entropy(), hook.positions.entropy())
    second.after_load_checkpoint(first, {"state_dict": {}})  # one without: a stock checkpoint


# --- the warning


def warnings(tmp_path):
    (log,) = tmp_path.glob("*/*.log")
    return [line for line in log.read_text().splitlines() if "frozen to fixed positions" in line]


def test_frozen_masks_are_warned_of_once_with_the_remedy(photos_config, tmp_path):
    """A real network that sees the border only, and no noise: the middle is always masked."""
    options = {
        "model.masking.network": dict(num_layers=2, channels=2, downsample=1),
        "model.masking.estimator": dict(type="straight_through", noise=0.0),
        "optim_wrapper.paramwise_cfg.custom_keys.masking.lr_mult": 0.0,
        "train_cfg.max_epochs": 8,
    }
    hooks = [dict(type="SetWeights"), meters(window=10)]
    runner = train(photos_config, custom_hooks=hooks, **options)
    entropy = history(runner, "position_entropy")
    assert len(entropy) == 23
    assert set(entropy) == {0.0}
    assert set(history(runner, "mask_distance")) == {0.0}
    (line,) = warnings(tmp_path)
    assert "WARNING" in line
    for remedy in ("random_share", "temperature", "noise", "lr_mult"):
        assert remedy in line


def test_the_warning_comes_once(photos_config, tmp_path):
    """With a bound that all masks miss, each time by another number: mmengine's log leaves out
    warnings that repeat word for word.
    """
    hook = meters(window=1, min_position_entropy=1.0)
    runner = train(photos_config, custom_hooks=[hook])
    assert len(set(history(runner, "position_entropy"))) > 1
    assert len(warnings(tmp_path)) == 1


def test_the_remedy_helps(photos_config, tmp_path):
    """The same network with a third of the masked patches at random."""
    options = {
        "model.masking.network": dict(num_layers=2, channels=2, downsample=1),
        "model.masking.estimator": dict(type="straight_through", noise=0.0),
        "model.masking.random_share": 0.3,
        "optim_wrapper.paramwise_cfg.custom_keys.masking.lr_mult": 0.0,
        "train_cfg.max_epochs": 8,
    }
    hooks = [dict(type="SetWeights"), meters(window=10)]
    runner = train(photos_config, custom_hooks=hooks, **options)
    assert min(history(runner, "position_entropy")) > 0.3
    assert not warnings(tmp_path)


def test_random_masks_one_image_a_step_are_not_warned_of(photos_config, tmp_path):
    options = {
        "model.masking": dict(_delete_=True, type="RandomMasking"),
        "train_dataloader.batch_size": 1,
        "train_cfg.max_epochs": 3,
    }
    runner = train(photos_config, custom_hooks=[meters(interval=5)], **options)
    entropy = history(runner, "position_entropy")
    assert len(entropy) == 25
    assert entropy[-1] > 0.97
    assert not warnings(tmp_path)


def test_the_first_masks_alone_are_no_reason_to_warn(photos_config, tmp_path):
    """One mask is always "frozen": the window fills first."""
    options = {
        "model.masking": dict(_delete_=True, type="RandomMasking"),
        "train_dataloader.batch_size": 1,
    }
    runner = train(photos_config, custom_hooks=[meters()], **options)
    assert history(runner, "position_entropy")[0] == 0
    assert not warnings(tmp_path)


def test_without_masking_the_hook_rests_and_says_so(photos_config, tmp_path):
    train(photos_config, custom_hooks=[meters()], **{"model.masking": None})
    (log,) = tmp_path.glob("*/*.log")
    assert "MaskingMetersHook rests in this run: MAE has no masking=" in log.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=0), "interval must be at least 1, got 0"),
        (dict(window=0), "window counts batches, at least 1, got 0"),
        (dict(min_position_entropy=1.5), r"min_position_entropy must lie in \[0, 1\], got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskingMetersHook(**options)
