"""Linear probe and fine-tuning, for real, from what the real pre-training left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmengine.hub import get_config

from amn_masking.tools.checkpoints import backbone_weights, read_checkpoint
from tests.conftest import ROOT, thorough_only
from tests.helpers.downstream import BENCHMARKS, LINEAR, small
from tests.helpers.mim import mim_train

FINETUNE = f"{BENCHMARKS}/vit-tiny_finetune_photos.py"


def briefly(photos: Path, checkpoint: Path) -> dict:
    return small(photos) | {
        "model.backbone.init_cfg.checkpoint": checkpoint,
        "train_cfg.max_epochs": 1,
        "train_cfg.val_interval": 1,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.logger.interval": 1,
    }


def encoder_of(path: Path) -> dict[str, torch.Tensor]:
    return backbone_weights(read_checkpoint(path))


def complaints(output: str) -> dict[str, list[str]]:
    """What mmengine says it missed and did not expect when it loaded the encoder."""
    found = {}
    for key, pattern in (
        ("unexpected", r"unexpected key in source state_dict: (.*)"),
        ("missing", r"missing keys in source state_dict: (.*)"),
    ):
        match = re.search(pattern, output)
        found[key] = sorted(match[1].split(", ")) if match else []
    return found


@pytest.mark.slow
def test_the_linear_probe_starts_from_the_encoder_and_leaves_it_alone(pretrained, photos, tmp_path):
    """From the checkpoint of the Runner as it is, log buffers and all."""
    output = mim_train(LINEAR, tmp_path, briefly(photos, pretrained))
    assert f"from: {pretrained}" in output.replace("\n", "")
    assert complaints(output) == {"unexpected": [], "missing": []}
    before, after = encoder_of(pretrained), encoder_of(tmp_path / "epoch_1.pth")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    assert 0 <= accuracy(output) <= 100
    head = read_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]
    # Truncated normal of deviation 0.01 at the start; LARS has moved it, and the biases from 0.
    assert head["head.layers.head.bias"].abs().max() > 0


@thorough_only
@pytest.mark.slow
def test_fine_tuning_starts_from_the_encoder_and_moves_it(exported, photos, tmp_path):
    """From the exported encoder."""
    output = mim_train(FINETUNE, tmp_path, briefly(photos, exported))
    assert f"from: {exported}" in output.replace("\n", "")
    # Its features are averaged and then normalised, where pre-training normalises at the end.
    assert complaints(output) == {
        "unexpected": ["ln1.bias", "ln1.weight"],
        "missing": ["ln2.bias", "ln2.weight"],
    }
    before, after = encoder_of(exported), encoder_of(tmp_path / "epoch_1.pth")
    shared = [name for name in before if before[name].dim() > 1]
    assert len(shared) > 20
    for name in shared:
        moved = (after[name] - before[name]).norm() / before[name].norm()
        assert moved < 0.1, name  # from another start it would be about 1.4
    moved = {name for name in shared if not torch.equal(before[name], after[name])}
    assert "patch_embed.projection.weight" in moved
    assert 0 <= accuracy(output) <= 100


def accuracy(output: str) -> float:
    return float(re.findall(r"Epoch\(val\) .*accuracy/top1: ([\d.]+)", output)[-1])


@pytest.mark.parametrize(
    "name", ["vit-base-p16_8xb2048-linear-coslr-90e_in1k", "vit-base-p16_8xb128-coslr-100e_in1k"]
)
def test_the_imagenet_benchmarks_are_mmpretrains_but_for_the_checkpoint(name):
    ours = unscoped(Config.fromfile(ROOT / f"{BENCHMARKS}/{name}.py").to_dict())
    module = "amn_masking.adapters.mmpretrain.runner.safe_reading"
    assert ours.pop("custom_imports") == {"imports": [module]}
    init = ours["model"]["backbone"]["init_cfg"]
    assert init.pop("checkpoint") == "work_dirs/mae_amn_vit-b/epoch_300.pth"
    assert init == {"type": "Pretrained", "prefix": "backbone."}
    stock = unscoped(get_config(f"mmpretrain::mae/benchmarks/{name}.py").to_dict())
    del stock["model"]["backbone"]["init_cfg"]["checkpoint"]
    assert ours == stock


def unscoped(node):
    """Without the ``_scope_`` that mmengine writes into what comes from another package."""
    if isinstance(node, dict):
        return {key: unscoped(value) for key, value in node.items() if key != "_scope_"}
    return [unscoped(value) for value in node] if isinstance(node, list) else node
