"""lightly's masked vision transformers under a strategy: alone, and in a real Lightning module."""

from __future__ import annotations

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

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.adapters.lightly import bool_mask, patch_error, token_mask
from amn_masking.meters import masked_mean
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


def adversarial(**options):
    torch.manual_seed(2)
    return AdversarialMasking(**dict(mask_ratio=0.5, patch_size=8) | options)


@pytest.fixture(params=BACKBONES)
def backbone_and_prefix(request):
    build, prefix = BACKBONES[request.param]
    return build(), prefix


def test_indices_are_the_mask_behind_the_prefix(backbone_and_prefix):
    backbone, prefix = backbone_and_prefix
    patch_mask = adversarial()(torch.randn(4, 3, 32, 32))
    idx_keep, idx_mask = token_mask(patch_mask, backbone)
    assert idx_keep.dtype == idx_mask.dtype == torch.int64
    for row in range(4):
        masked = [prefix + place for place in range(16) if patch_mask.mask[row, place] == 1]
        assert sorted(idx_mask[row].tolist()) == masked
        assert idx_keep[row, :prefix].tolist() == list(range(prefix))
        assert sorted([*idx_keep[row].tolist(), *masked]) == list(range(prefix + 16))
    expected = torch.zeros(4, prefix + 16, dtype=torch.bool)
    expected[:, prefix:] = patch_mask.mask == 1
    assert torch.equal(bool_mask(patch_mask, backbone), expected)


def test_random_masking_is_lightly_s_own():
    """From the same noise; lightly draws one number more, for the class token."""
    noise = torch.rand(4, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "rand", lambda *size, **_: F.pad(noise, (1, 0)) if size == (4, 17) else noise
        )
        stock = utils.random_token_mask((4, 17), mask_ratio=0.6)
        patch_mask = RandomMasking(0.6, 8)(torch.randn(4, 3, 32, 32))
    for one, other in zip(stock, token_mask(patch_mask, timm()), strict=True):
        assert torch.equal(one, other)


def test_dropped_and_replaced_tokens_are_the_mask_s(backbone_and_prefix):
    """What the encoder gives for an image does not change with the pixels of masked patches."""
    backbone, _ = backbone_and_prefix
    images, other = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    patch_mask = adversarial()(images)
    hidden = patch_mask.pixel_mask(32, 32).bool()
    idx_keep, idx_mask = token_mask(patch_mask, backbone)
    for how in (
        dict(idx_keep=idx_keep),
        dict(idx_mask=idx_mask),
        dict(mask=bool_mask(patch_mask, backbone)),
    ):
        before = backbone.encode(images, **how)
        same = backbone.encode(torch.where(hidden, other, images), **how)
        changed = backbone.encode(torch.where(hidden, images, other), **how)
        torch.testing.assert_close(before, same)
        assert (before - changed).abs().max() > 1e-3


@pytest.mark.parametrize("criterion", ["L1", "L2"])
def test_errors_go_back_to_their_patches_in_any_order(backbone_and_prefix, criterion):
    backbone, prefix = backbone_and_prefix
    patch_mask = adversarial()(torch.randn(3, 3, 32, 32))
    pred, target = torch.randn(3, 16, 192), torch.randn(3, 16, 192)
    each = {"L1": F.l1_loss, "L2": F.mse_loss}[criterion](pred, target, reduction="none").mean(-1)
    _, idx_mask = token_mask(patch_mask, backbone)
    for idx in (idx_mask, idx_mask.sort(1).values, idx_mask.flip(1)):
        some = [utils.get_at_index(tensor, idx - prefix) for tensor in (pred, target)]
        error = patch_error(*some, idx, backbone, criterion)
        torch.testing.assert_close(error, each * patch_mask.mask)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (dict(patch_size=4), 32, r"over the backbone's 16 patches, got one over 64 \(8 x 8\)"),
        (dict(), 64, "got one over 64.*the images' size"),
        (dict(threshold=dict(type="mean")), 32, r"threshold=dict\(type='quantile'\)"),
        (dict(gate=True), 32, "leave out gate=True"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(options, size, message):
    patch_mask = adversarial(**options)(torch.randn(3, 3, size, size))
    with pytest.raises(ValueError, match=message):
        token_mask(patch_mask, timm())


def test_wrong_arguments_are_refused():
    patch_mask = adversarial()(torch.randn(2, 3, 32, 32))
    with pytest.raises(TypeError, match=r"MaskedVisionTransformerTIMM.*got VisionTransformer"):
        token_mask(patch_mask, timm().vit)
    three, two = torch.zeros(2, 8, 3), torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(2, 8, 3\), \(2, 8, 4\) and \(2, 8\)"):
        patch_error(three, torch.zeros(2, 8, 4), two, timm())
    with pytest.raises(ValueError, match=r"\(2, 8, 3\), \(2, 8, 3\) and \(2, 7\)"):
        patch_error(three, three, two[:, 1:], timm())
    with pytest.raises(ValueError, match=r"one of \['L1', 'L2'\], got 'L3'"):
        patch_error(three, three, two, timm(), "L3")


def test_replaced_tokens_take_free_counts():
    """SimMIM: each image of a batch of different counts comes out as it would alone."""
    backbone, images, mask = timm(), torch.randn(4, 3, 32, 32), ragged(4, 16)
    patch_mask = PatchMask.from_mask(mask, (4, 4))
    together = backbone.encode(images, mask=bool_mask(patch_mask, backbone))
    for row in range(4):
        one = slice(row, row + 1)
        alone = bool_mask(PatchMask.from_mask(mask[one], (4, 4)), backbone)
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
        _, idx_mask = token_mask(patch_mask, self.backbone)
        encoded = self.backbone.encode(images, idx_mask=idx_mask)
        pred = self.predict(utils.get_at_index(encoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, 8), idx_mask - 1)
        loss = F.l1_loss(pred, target)
        error = patch_error(pred, target, idx_mask, self.backbone, "L1")
        torch.testing.assert_close(masked_mean(error, patch_mask.mask), loss)
        self.log("strength", self.masking.strength)
        return self.masking.total_loss(loss, error, patch_mask)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(folder, model, max_steps, checkpoint=None, **options):
    pl.seed_everything(3)
    loader = torch.utils.data.DataLoader(torch.randn(4, 3, 32, 32), 4)
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
    for name in ("masking.network.layers.0.weight", "backbone.vit.blocks.0.attn.qkv.weight"):
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
        resumed.masking.network.layers[0].weight.zero_()
    fit(tmp_path, resumed, 8, tmp_path / "step=4.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
