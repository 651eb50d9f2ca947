"""The real ``mim train``, in a process of its own, on real image files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config

from tests.conftest import thorough_only
from tests.helpers.mim import PHOTOS_CONFIG, TINY, data_options, mim_train, scalars, weights

pytestmark = pytest.mark.slow

STOCK_CONFIG = "mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py"
KEYS = (
    "loss", "reconstruction", "adversarial",
    "mask_ratio", "mask_ratio_min", "mask_ratio_max", "score_spread",
)  # fmt: skip

# The stock config is for ImageNet on accelerators: its AMP wrapper refuses a CPU.
ON_CPU = {
    "optim_wrapper._delete_": True,
    "optim_wrapper.type": "OptimWrapper",
    "optim_wrapper.optimizer.type": "AdamW",
    "optim_wrapper.optimizer.lr": 0.001,
    "resume": False,
}


def assert_trained_with_masks(work_dir: Path, epochs: int = 1) -> None:
    rows = scalars(work_dir)
    assert rows
    for key in KEYS:
        assert all(torch.isfinite(torch.tensor(row[key])) for row in rows), key
    state = weights(work_dir / f"epoch_{epochs}.pth")
    assert sum(name.startswith("masking.network") for name in state) == 6


@pytest.fixture
def tiny_stock_config(tmp_path: Path, photos: Path):
    """A user's own config on top of mmpretrain's, with nothing of ours in it."""

    def write(body: str = "") -> Path:
        path = tmp_path / "mine.py"
        path.write_text(
            f"_base_ = 'mmpretrain::mae/{STOCK_CONFIG}'\n"
            "model = dict(\n"
            "    backbone=dict(arch='deit-t', img_size=64),\n"
            "    neck=dict(num_patches=16, embed_dim=192, decoder_embed_dim=32, decoder_depth=1,\n"
            "              decoder_num_heads=2))\n"
            "train_dataloader = dict(batch_size=14, num_workers=0, persistent_workers=False,\n"
            f"    dataset=dict(data_root={str(photos)!r}, with_label=False, pipeline=[\n"
            "        dict(type='LoadImageFromFile'),\n"
            "        dict(type='RandomResizedCrop', scale=64, backend='pillow'),\n"
            "        dict(type='PackInputs')]))\n"
            "optim_wrapper = dict(_delete_=True, type='OptimWrapper',\n"
            "    optimizer=dict(type='AdamW', lr=1e-3))\n"
            "train_cfg = dict(max_epochs=1)\n"
            "default_hooks = dict(logger=dict(interval=1))\n"
            "resume = False\n" + body
        )
        return path

    return write


def test_photos_config_trains_draws_and_changes_the_masking_network(tmp_path, photos):
    crop = {"train_dataloader.dataset.pipeline.1.scale": 64, "train_cfg.max_epochs": 3}
    crop["custom_hooks.0.interval"] = 1
    mim_train(PHOTOS_CONFIG, tmp_path, TINY | data_options(photos) | crop)
    assert_trained_with_masks(tmp_path, epochs=3)
    pictures = sorted(path.name for path in tmp_path.glob("*/vis_data/vis_image/*.png"))
    assert pictures == [f"masking_{step}.png" for step in (0, 3, 6, 9)]
    # Measured before the first step; the next time would be the 51st.
    assert len({row["adversarial_gain"] for row in scalars(tmp_path)}) == 1
    before, after = (weights(tmp_path / f"epoch_{epoch}.pth") for epoch in (2, 3))
    for name in before:
        if name.startswith("masking.network"):
            assert not torch.equal(before[name], after[name]), name


@thorough_only  # as the shipped config above does
def test_form_1_scope(tmp_path, tiny_stock_config):
    config = tiny_stock_config(
        "model.update(type='amn_masking.MAE', masking=dict(type='AdversarialMasking'))\n"
        "train_dataloader.update(collate_fn=dict(_delete_=True, type='default_collate'))\n"
    )
    mim_train(config, tmp_path / "out")
    assert_trained_with_masks(tmp_path / "out")


def test_form_2_drop_in_keeps_the_stock_type(tmp_path, tiny_stock_config):
    config = tiny_stock_config(
        "custom_imports = dict(imports=['amn_masking.dropin'])\n"
        "model.update(masking=dict(type='AdversarialMasking'))\n"
    )
    assert Config.fromfile(config, import_custom_modules=False).model.type == "MAE"
    mim_train(config, tmp_path / "out")
    assert_trained_with_masks(tmp_path / "out")


@thorough_only
def test_form_3_no_config_of_ours(tmp_path, tiny_stock_config):
    """Also mends the ``_scope_`` that the base puts on the stock collate function."""
    config = tiny_stock_config()
    assert Config.fromfile(config).train_dataloader.collate_fn._scope_ == "mmpretrain"
    options = {"model.type": "amn_masking.MAE", "model.masking.type": "AdversarialMasking"}
    mim_train(config, tmp_path / "out", options)
    assert_trained_with_masks(tmp_path / "out")


def test_form_3_on_the_stock_config_by_its_name(tmp_path, photos):
    """mmpretrain's own file, found by mim in its package; its ViT-B made small here."""
    options = TINY | ON_CPU | data_options(photos)
    options |= {"model.type": "amn_masking.MAE", "model.masking.type": "AdversarialMasking"}
    options |= {
        "train_dataloader.dataset.pipeline.1.scale": 64,
        "model.backbone.arch": "deit-t",
        "model.neck.embed_dim": 192,
        "model.neck.decoder_embed_dim": 32,
        "model.neck.decoder_num_heads": 2,
    }
    mim_train(STOCK_CONFIG, tmp_path, options)
    assert_trained_with_masks(tmp_path)


def test_vit_b_config_trains_at_full_size(tmp_path, photos):
    """ViT-B/16 at 224, decoder and all: batch 4, real image files, on the CPU. A quarter of the
    patches is seen and a quarter predicted: the decoder runs on 1 + 49 + 49 tokens.
    """
    options = ON_CPU | data_options(photos)
    options |= {
        "train_dataloader.batch_size": 4,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "train_dataloader.dataset.indices": 8,
        "train_cfg.max_epochs": 1,
        "default_hooks.logger.interval": 1,
        "default_hooks.checkpoint.by_epoch": False,
        "default_hooks.checkpoint.save_optimizer": False,
        "custom_hooks.0.num_images": 2,
        "custom_hooks.1.type": "tests.helpers.decoder_tokens.DecoderTokensHook",
        "model.masking.mask_ratio": 0.75,
        "model.masking.prediction_ratio": 0.25,
    }
    output = mim_train("configs/mmpretrain/mae_amn_vit-b.py", tmp_path, options)
    assert re.search(r"Epoch\(train\) +\[1\]\[2/2\]", output)
    assert re.findall("decoder tokens: (.*)", output) == ["[99, 99]"]
    assert all(row["prediction_ratio"] == 0.25 for row in scalars(tmp_path))
    first, last = weights(tmp_path / "iter_1.pth"), weights(tmp_path / "iter_2.pth")
    network = [name for name in first if name.startswith("masking.network")]
    assert len(network) == 6
    assert all(not torch.equal(first[name], last[name]) for name in network)
    assert first["backbone.pos_embed"].shape == (1, 197, 768)
    for path in tmp_path.glob("*.pth"):
        path.unlink()
