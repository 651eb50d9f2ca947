"""lightly's masked vision transformers under a strategy: alone, and in a real Lightning module."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

import pytest
import torch

pytest.importorskip("lightly", reason="needs the extra 'lightly'")
pytest.importorskip("timm", reason="needs the extra 'lightly'")

import pytorch_lightning as pl
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM, MaskedVisionTransformerTorchvision
from pytorch_lightning.callbacks import ModelCheckpoint
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer as TorchvisionVisionTransformer

from amn_masking import AdversarialMasking, PatchMask, RandomMasking, watch
from amn_masking.adapters.lightly import bool_mask, patch_error, token_mask
from amn_masking.patches import masked_mean
from tests.conftest import ROOT, thorough_only
from tests.helpers.draws import ragged


def timm(**options):
    torch.manual_seed(1)
    small = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    vit = TimmVisionTransformer(**small | options)
    return MaskedVisionTransformerTIMM(vit, pos_embed_initialization="learn")


def torchvision():
    torch.manual_seed(1)
    return MaskedVisionTransformerTorchvision(TorchvisionVisionTransformer(32, 8, 2, 2, 24, 48))


BACKBONES = {
    "torchvision": (torchvision, 1),
    "timm": (timm, 1),
    "registers": (lambda: timm(reg_tokens=4), 5),
    "no class token": (lambda: timm(class_token=False, global_pool="avg"), 0),
    "position of patches only": (lambda: timm(no_embed_class=True, reg_tokens=2), 3),
}


MEAN = dict(threshold=dict(type="mean"), mask_ratio=None)


def adversarial(**options):
    torch.manual_seed(2)
    return AdversarialMasking(**dict(mask_ratio=0.5, patch_size=8) | options)


@pytest.fixture(params=BACKBONES)
def backbone_and_prefix(request):
    build, prefix = BACKBONES[request.param]
    return build(), prefix


def test_indices_are_the_mask_behind_the_prefix(backbone_and_prefix):
    backbone, prefix = backbone_and_prefix
    images = torch.randn(4, 3, 32, 32)
    patch_mask = adversarial()(images)
    idx_keep, idx_mask = token_mask(patch_mask, backbone, images)
    assert idx_keep.dtype == idx_mask.dtype == torch.int64
    for row in range(4):
        masked = [prefix + place for place in range(16) if patch_mask.mask[row, place] == 1]
        assert sorted(idx_mask[row].tolist()) == masked
        assert idx_keep[row, :prefix].tolist() == list(range(prefix))
        assert sorted([*idx_keep[row].tolist(), *masked]) == list(range(prefix + 16))
    expected = torch.zeros(4, prefix + 16, dtype=torch.bool)
    expected[:, prefix:] = patch_mask.mask == 1
    assert torch.equal(bool_mask(patch_mask, backbone, images), expected)


def test_what_is_left_out_is_neither_kept_nor_predicted_and_masked_as_bool(backbone_and_prefix):
    backbone, prefix = backbone_and_prefix
    images = torch.randn(4, 3, 32, 32)
    patch_mask = adversarial(prediction_ratio=0.25)(images)
    idx_keep, idx_mask = token_mask(patch_mask, backbone, images)
    empty = torch.zeros(4, prefix + 16)
    assert torch.equal(empty.scatter(1, idx_mask, 1.0)[:, prefix:], patch_mask.predicted)
    assert torch.equal(empty.scatter(1, idx_keep, 1.0)[:, prefix:], 1 - patch_mask.mask)
    assert torch.equal(bool_mask(patch_mask, backbone, images)[:, prefix:], patch_mask.mask == 1)
    pred, target = torch.randn(2, 4, 4, 3)
    error = patch_error(pred, target, idx_mask, patch_mask, backbone)
    assert torch.equal(error > 0, patch_mask.predicted > 0)


def test_images_without_a_masked_patch(backbone_and_prefix):
    """By bool_mask among others, as crops of DINOv2; of nothing else there are no indices."""
    backbone, prefix = backbone_and_prefix
    images, mask = torch.randn(4, 3, 32, 32), torch.zeros(4, 4, 4)
    with pytest.raises(ValueError, match=r"idx_mask expected masked .*backbone.encode\(images\)"):
        token_mask(PatchMask.from_mask(mask), backbone, images)
    mask[1:3, 0] = 1
    hidden = bool_mask(PatchMask.from_mask(mask), backbone, images)
    assert torch.equal(hidden[:, prefix:], mask.flatten(1) == 1)
    got = backbone.encode(images, mask=hidden)
    whole = backbone.encode(images)
    torch.testing.assert_close(got[[0, 3]], whole[[0, 3]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got[1], whole[1], atol=1e-3)


def test_random_masking_is_lightly_s_own():
    """From the same noise; lightly draws one number more, for the class token."""
    noise, images = torch.rand(4, 16), torch.randn(4, 3, 32, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "rand", lambda *size, **_: F.pad(noise, (1, 0)) if size == (4, 17) else noise
        )
        stock = utils.random_token_mask((4, 17), mask_ratio=0.6)
        patch_mask = RandomMasking(0.6, 8)(images)
    for one, other in zip(stock, token_mask(patch_mask, timm(), images), strict=True):
        assert torch.equal(one, other)


def test_dropped_and_replaced_tokens_are_the_mask_s(backbone_and_prefix):
    """What the encoder gives for an image does not change with the pixels of masked patches."""
    backbone, _ = backbone_and_prefix
    images, other = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    patch_mask = adversarial()(images)
    hidden = patch_mask.pixel_mask(32, 32).bool()
    idx_keep, idx_mask = token_mask(patch_mask, backbone, images)
    for how in (
        dict(idx_keep=idx_keep),
        dict(idx_mask=idx_mask),
        dict(mask=bool_mask(patch_mask, backbone, images)),
    ):
        before = backbone.encode(images, **how)
        same = backbone.encode(torch.where(hidden, other, images), **how)
        changed = backbone.encode(torch.where(hidden, images, other), **how)
        torch.testing.assert_close(before, same)
        assert (before - changed).abs().max() > 1e-3


@pytest.mark.parametrize("criterion", ["L1", "L2"])
def test_errors_go_back_to_their_patches_in_any_order(backbone_and_prefix, criterion):
    backbone, prefix = backbone_and_prefix
    images = torch.randn(3, 3, 32, 32)
    patch_mask = adversarial()(images)
    pred, target = torch.randn(3, 16, 192), torch.randn(3, 16, 192)
    each = {"L1": F.l1_loss, "L2": F.mse_loss}[criterion](pred, target, reduction="none").mean(-1)
    _, idx_mask = token_mask(patch_mask, backbone, images)
    for idx in (idx_mask, idx_mask.sort(1).values, idx_mask.flip(1)):
        some = [utils.get_at_index(tensor, idx - prefix) for tensor in (pred, target)]
        error = patch_error(*some, idx, patch_mask, backbone, criterion)
        torch.testing.assert_close(error, each * patch_mask.mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MEAN, r"threshold=dict\(type='quantile'\)"),
        (dict(gate=True), "leave out gate=True"),
        (dict(patch_size=4), r"= \(3, 4, 4\) .* got \(3, 8, 8\).*patch_size=\(8, 8\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(options, message):
    images = torch.randn(3, 3, 32, 32)
    with pytest.raises(ValueError, match=message):
        token_mask(adversarial(**options)(images), timm(), images)


@pytest.mark.parametrize("take", [token_mask, bool_mask])
def test_grids_of_mask_images_and_backbone_are_one(take):
    """A transposed grid has as many patches."""
    images = torch.randn(3, 3, 64, 64)
    with pytest.raises(
        ValueError, match=r"64 x 64 pixels have 8 x 8 .*TIMM is built for 4 x 4; .*to 32 x 32"
    ):
        take(adversarial()(images), timm(), images)
    wide = torch.randn(3, 3, 16, 64)
    with pytest.raises(ValueError, match=r"expected .* = \(3, 2, 8\) .* got \(3, 8, 2\)"):
        take(adversarial()(wide.mT), timm(img_size=(16, 64)), wide)
    take(adversarial()(wide), timm(img_size=(16, 64)), wide)
    for backbone in (timm(dynamic_img_size=True), torchvision()):
        with pytest.raises(ValueError, match=r"square images .* got \(3, 3, 16, 64\)"):
            take(adversarial()(wide), backbone, wide)


@pytest.mark.parametrize("build", [lambda: timm(dynamic_img_size=True), torchvision])
@pytest.mark.parametrize("side", [16, 32, 48])
def test_images_of_another_size_where_the_backbone_takes_them(build, side):
    backbone, images = build(), torch.randn(2, 3, side, side)
    patch_mask = adversarial()(images)
    idx_keep, idx_mask = token_mask(patch_mask, backbone, images)
    whole = backbone.preprocess(images)
    kept = backbone.preprocess(images, idx_keep=idx_keep)
    assert torch.equal(kept, utils.get_at_index(whole, idx_keep))
    pred, target = torch.randn(2, 2, *idx_mask.shape[1:], 5)
    error = patch_error(pred, target, idx_mask, patch_mask, backbone)
    assert torch.equal(error > 0, patch_mask.mask > 0)


def test_masks_made_elsewhere_say_what_is_wrong_with_them():
    backbone, images = timm(), torch.randn(2, 3, 32, 32)
    idx_keep, _ = token_mask(adversarial()(images), backbone, images)
    tokens = backbone.preprocess(images)
    with pytest.raises(ValueError, match=r"take prefix tokens .* off first, tokens\[:, 1:\]"):
        adversarial()(images).gather_visible(tokens)
    with pytest.raises(ValueError, match=r"take prefix tokens .* off first, tokens\[:, 1:\]"):
        adversarial()(images).scatter(utils.get_at_index(tokens, idx_keep), torch.zeros(24))
    with pytest.raises(ValueError, match="needs at least one visible patch"):
        PatchMask.from_mask(torch.ones(2, 16))
    kept = torch.zeros(2, 16).scatter(1, adversarial()(images).ids_keep, 1.0)
    turned = PatchMask.from_mask(1 - kept)
    assert torch.equal(bool_mask(turned, backbone, images)[:, 1:], kept == 0)


def test_wrong_arguments_are_refused():
    patch_mask = adversarial()(torch.randn(2, 3, 32, 32))
    with pytest.raises(TypeError, match=r"MaskedVisionTransformerTIMM.*got VisionTransformer"):
        token_mask(patch_mask, timm().vit, torch.zeros(2, 3, 32, 32))
    three, two = torch.zeros(2, 8, 3), torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(2, 8, 3\), \(2, 8, 4\) and \(2, 8\)"):
        patch_error(three, torch.zeros(2, 8, 4), two, patch_mask, timm())
    with pytest.raises(ValueError, match=r"\(2, 8, 3\), \(2, 8, 3\) and \(2, 7\)"):
        patch_error(three, three, two[:, 1:], patch_mask, timm())
    with pytest.raises(ValueError, match=r"one of \['L1', 'L2'\], got 'L3'"):
        patch_error(three, three, two, patch_mask, timm(), "L3")


def test_replaced_tokens_take_free_counts():
    """SimMIM: each image of a batch of different counts comes out as it would alone."""
    backbone, images, mask = timm(), torch.randn(4, 3, 32, 32), ragged(4, 16)
    patch_mask = PatchMask.from_mask(mask, (4, 4))
    together = backbone.encode(images, mask=bool_mask(patch_mask, backbone, images))
    for row in range(4):
        one = slice(row, row + 1)
        alone = bool_mask(PatchMask.from_mask(mask[one], (4, 4)), backbone, images[one])
        single = backbone.encode(images[one], mask=alone)
        torch.testing.assert_close(together[one], single, atol=1e-5, rtol=0)


class SimMIM(pl.LightningModule):
    """As lightly's example, with a strategy; automatic optimisation."""

    def __init__(self, masking):
        super().__init__()
        self.backbone = timm()
        self.predict = nn.Linear(24, 192)
        self.masking = masking

    def training_step(self, images, _):
        self.masking.set_progress(self.global_step / self.trainer.max_steps)
        patch_mask = self.masking(images)
        _, idx_mask = token_mask(patch_mask, self.backbone, images)
        encoded = self.backbone.encode(images, idx_mask=idx_mask)
        pred = self.predict(utils.get_at_index(encoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, 8), idx_mask - 1)
        loss = F.l1_loss(pred, target)
        error = patch_error(pred, target, idx_mask, patch_mask, self.backbone, "L1")
        torch.testing.assert_close(masked_mean(error, patch_mask.mask), loss)
        self.log("strength", self.masking.strength)
        return self.masking.total_loss(loss, error, patch_mask)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(folder, model, max_steps, checkpoint=None, batch=4, **options):
    pl.seed_everything(3)
    loader = torch.utils.data.DataLoader(torch.randn(4, 3, 32, 32), batch)
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing="callbacks" in options,
        **options,
    )
    trainer.fit(model, loader, ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_both_networks(tmp_path, precision):
    model = SimMIM(adversarial(strength=dict(start=-1, end=1)))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = fit(tmp_path, model, 4, precision=precision)
    after = model.state_dict()
    for name in ("masking.network.convolutions.0.weight", "backbone.vit.blocks.0.attn.qkv.weight"):
        assert not torch.equal(before[name], after[name])
        assert torch.isfinite(after[name]).all()
    assert trainer.callback_metrics["strength"] == 0.5
    assert any(key.startswith("masking.") for key in trainer.model.state_dict())


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    """Without noise in the masks, and with one batch: where Lightning goes on is its own affair."""
    whole, resumed = (
        SimMIM(adversarial(estimator=dict(type="straight_through", noise=0))) for _ in range(2)
    )
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=4, save_top_k=-1)
    fit(tmp_path, whole, 8, callbacks=[keep])
    with torch.no_grad():
        resumed.masking.network.convolutions[0].weight.zero_()
    fit(tmp_path, resumed, 8, tmp_path / "step=4.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


# --- what docs/lightly.md says about schedules: with one optimizer, and with two by hand


class TwoOptimizers(SimMIM):
    """Manual optimisation, an optimizer for each network: global_step counts both."""

    def __init__(self, masking, recipe):
        super().__init__(masking)
        self.automatic_optimization = False
        self.recipe, self.seen = recipe, []

    def training_step(self, images, batch_idx):
        self.recipe(self, batch_idx)
        self.seen.append(self.masking.strength)
        patch_mask = self.masking(images)
        _, idx_mask = token_mask(patch_mask, self.backbone, images)
        pred = self.predict(self.backbone.encode(images, idx_mask=idx_mask)[:, 1:])
        error = (pred - utils.patchify(images, 8)).abs().mean(-1)
        loss = self.masking.total_loss(masked_mean(error, patch_mask.mask), error, patch_mask)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        rest = [p for name, p in self.named_parameters() if "masking" not in name]
        return [torch.optim.SGD(group, 0.1) for group in (rest, self.masking.parameters())]


def recipes():
    """The code of docs/lightly.md that calls set_progress, by what ends the training."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/lightly.md").read_text(), re.S)
    first, second = (block for block in blocks if "set_progress" in block)
    return dict(max_epochs=first, max_steps=second)


@pytest.mark.parametrize(
    ("end", "options"), [("max_epochs", dict(max_epochs=4, max_steps=-1)), ("max_steps", {})]
)
def test_a_schedule_goes_from_its_start_towards_its_end(tmp_path, end, options):
    """4 epochs of 2 batches; the schedule's 0, 1/8, ..., 7/8."""

    def recipe(self, batch_idx):
        exec(recipes()[end], dict(self=self, batch_idx=batch_idx))

    model = TwoOptimizers(adversarial(strength=dict(start=-1, end=1)), recipe)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*progress")
        fit(tmp_path, model, **dict(max_steps=16, batch=2) | options)
    assert model.global_step == 16
    assert model.seen == [step / 4 - 1 for step in range(8)]


def test_steps_counted_twice_end_at_the_schedule_s_end_with_a_warning(tmp_path):
    def recipe(self, batch_idx):
        self.masking.set_progress(self.global_step / self.trainer.estimated_stepping_batches)

    model = TwoOptimizers(adversarial(strength=dict(start=-1, end=1)), recipe)
    with pytest.warns(UserWarning, match=r"in \[0, 1\], got 1\.25: the nearest end") as told:
        fit(tmp_path, model, max_steps=-1, max_epochs=4, batch=2)
    assert sum("the nearest end is taken" in str(warning.message) for warning in told) == 1
    assert model.seen == [-1, -0.5, 0, 0.5, 1, 1, 1, 1]


# --- what would never train, or not the run that was meant


def test_wrong_use_is_an_error_and_not_a_network_that_never_learns():
    masking, images = adversarial(), torch.randn(2, 3, 32, 32)
    error = torch.rand(2, 16, requires_grad=True)
    with torch.no_grad():
        patch_mask = masking(images)
    with pytest.raises(ValueError, match=r"under torch\.no_grad\(\).*learn nothing"):
        masking.total_loss(error.mean(), error, patch_mask)
    with pytest.raises(TypeError, match=r"expected the PatchMask .* got Tensor"):
        masking.total_loss(error.mean(), error, bool_mask(patch_mask, timm(), images))


def test_a_network_that_is_not_in_the_optimizer_is_warned_of(tmp_path, monkeypatch):
    class Forgotten(SimMIM):
        def configure_optimizers(self):
            return torch.optim.SGD([*self.backbone.parameters(), *self.predict.parameters()], 0.1)

    monkeypatch.setattr(watch, "STEPS_TO_MOVE", 4)
    with pytest.warns(UserWarning, match="weights have not moved in 4.*to the optimizer"):
        fit(tmp_path, Forgotten(adversarial()), 5)


@pytest.mark.parametrize(
    "options", [dict(threshold=dict(type="tracking")), dict(network=dict(channels=8))]
)
def test_a_run_of_another_strategy_is_not_resumed(tmp_path, options):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=2, save_top_k=-1)
    fit(tmp_path, SimMIM(adversarial()), 2, callbacks=[keep])
    other = SimMIM(adversarial(random_share=0.25, **options))
    with pytest.raises(RuntimeError, match=r"masking\.(threshold\.offset|network)"):
        fit(tmp_path, other, 4, tmp_path / "step=2.ckpt")


@pytest.mark.parametrize("of_pixels", [False, True])
def test_patches_without_data_do_not_matter(of_pixels):
    """As docs/lightly.md says: NaN in them gives the same masks, losses and gradients as 7."""
    got, valid = [], torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0, 0] = valid[1, 2, 1] = False
    pixels = valid.repeat_interleave(8, 1).repeat_interleave(8, 2)
    start = torch.randn(2, 3, 32, 32)
    for filler in (float("nan"), 7.0):
        model = SimMIM(adversarial())
        torch.manual_seed(3)
        images = start.masked_fill(~pixels[:, None], filler)
        patch_mask = model.masking(images, valid=pixels if of_pixels else valid.flatten(1))
        images = patch_mask.fill_invalid(images)
        idx_keep, idx_mask = token_mask(patch_mask, model.backbone, images)
        assert not (patch_mask.mask * ~valid.flatten(1)).any()
        loss = model.backbone.encode(images, idx_keep=idx_keep).square().mean()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        got.append([loss.detach(), idx_mask, *gradients])
    for one, other in zip(*got, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


TWO_PROCESSES = """
import sys, torch
import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from tests.adapters.test_lightly import SimMIM, adversarial
pl.seed_everything(3)
model = SimMIM(adversarial())
ddp = DDPStrategy(find_unused_parameters=sys.argv[2] == "yes", process_group_backend="gloo")
trainer = pl.Trainer(
    max_steps=3, accelerator="cpu", devices=2, strategy=ddp, default_root_dir=sys.argv[1],
    logger=False, enable_progress_bar=False, enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(model, torch.utils.data.DataLoader(torch.randn(8, 3, 32, 32), 4))
assert trainer.world_size == 2
torch.save(model.state_dict(), f"{sys.argv[1]}/{trainer.global_rank}.pt")
"""


@thorough_only
@pytest.mark.slow
@pytest.mark.parametrize("find_unused", ["yes", "no"])
def test_two_processes_need_to_look_for_unused_parameters(tmp_path, find_unused):
    """The ViT's classifier head has no part in the loss; that is so without masking too."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*map(str, launcher), str(script), str(tmp_path), find_unused],
        cwd=ROOT,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if find_unused == "no":
        assert done.returncode != 0
        assert "parameters that were not used in producing the loss" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    first = "network.convolutions.0.weight"
    assert not torch.equal(one[f"masking.{first}"], adversarial().state_dict()[first])
