"""What importing the adapter, and building a masked model, does to the rest of the process."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import load_from_local

from amn_masking.adapters.mmpretrain.runner import install, resume
from tests.conftest import ROOT, thorough_only

# The places of mmengine that the adapter replaces for its own models.
PLACES = """
from mmengine.registry import FUNCTIONS
from mmengine.runner import CheckpointLoader, Runner
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import FlexibleRunner

def places():
    return (
        Runner.resume,
        Runner.load_checkpoint,
        Runner.load_or_resume,
        FlexibleRunner.load_or_resume,
        dict(CheckpointLoader._schemes),
        FUNCTIONS.get("default_collate"),
        FUNCTIONS.get("pseudo_collate"),
        OPTIM_WRAPPER_CONSTRUCTORS.get("DefaultOptimWrapperConstructor"),
    )
"""
IMPORT_ALONE = """
before = places()
import amn_masking.adapters.mmpretrain
assert places() == before
"""
BUILD_WITHOUT_MASKING = """
before = places()
import amn_masking.adapters.mmpretrain
from tests.helpers import small_mae
small_mae.build()
small_mae.build(masking=None)
assert places() == before
small_mae.build(masking=dict(type="RandomMasking"))
assert places() != before
"""
# A supervised run: two epochs of a small classifier on made-up images, clipped, with AdamW of
# groups of its own, stopped after one epoch and resumed.
SUPERVISED = """
import sys, torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.utils import register_all_modules
from torch.utils.data import Dataset
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample

register_all_modules()
MORE

@DATASETS.register_module()
class Made(Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        image = torch.randint(0, 256, (3, 16, 16), generator=generator)
        return dict(inputs=image, data_samples=DataSample().set_gt_label(i % 2))

def run(epochs, resume):
    runner = Runner.from_cfg(Config(dict(
        model=dict(
            type="ImageClassifier", data_preprocessor=dict(num_classes=2),
            backbone=dict(type="VisionTransformer", arch=dict(embed_dims=16, num_layers=1,
                num_heads=2, feedforward_channels=16), img_size=16, patch_size=8),
            head=dict(type="VisionTransformerClsHead", num_classes=2, in_channels=16,
                loss=dict(type="CrossEntropyLoss")),
        ),
        train_dataloader=dict(batch_size=4, num_workers=0, dataset=dict(type="Made"),
            sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=dict(type="default_collate")),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1),
            clip_grad=dict(max_norm=0.1),
            paramwise_cfg=dict(norm_decay_mult=0.0)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), work_dir=sys.argv[1], resume=resume,
        default_scope="mmpretrain", randomness=dict(seed=0), log_level="ERROR",
        experiment_name=f"run{epochs}",
    )))
    runner.train()
    return runner

run(1, False)
runner = run(2, True)
torch.save(dict(
    weights=runner.model.state_dict(),
    losses=runner.message_hub.get_scalar("train/loss").data[0].tolist(),
    iteration=runner.iter,
    groups=type(runner.optim_wrapper.optimizer.param_groups[0]).__name__,
), sys.argv[1] + "/result.pth")
"""
BUILD = """
import amn_masking.adapters.mmpretrain
from mmpretrain.registry import MODELS
from tests.helpers import small_mae
small_mae.build(masking=dict(type="AdversarialMasking"))
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    # mmengine's own loader of checkpoints fails since torch 2.6 on upstream; torch has a switch.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip


def test_the_import_alone_replaces_nothing():
    done = python(PLACES + IMPORT_ALONE)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_model_without_masking_replaces_nothing():
    done = python(PLACES + BUILD_WITHOUT_MASKING)
    assert done.returncode == 0, done.stderr[-2000:]


@thorough_only
@pytest.mark.slow
def test_a_supervised_run_is_the_same_with_the_import_and_beside_a_masked_model(tmp_path):
    """Trained, clipped, stopped, resumed by mmengine's own reader: bit for bit."""
    results = []
    for number, more in enumerate(("", "import amn_masking.adapters.mmpretrain", BUILD)):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = python(
            SUPERVISED.replace("MORE", more), str(folder), TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(folder / "result.pth"))
    stock = results[0]
    assert stock["iteration"] == 6
    for other in results[1:]:
        assert other["losses"] == stock["losses"]
        assert other["iteration"] == 6
        assert other["groups"] == stock["groups"]
        assert other["weights"].keys() == stock["weights"].keys()
        for name, value in stock["weights"].items():
            assert torch.equal(other["weights"][name], value), name


def test_installing_twice_changes_nothing():
    install()
    before = Runner.resume, Runner.load_checkpoint, dict(CheckpointLoader._schemes)
    install()
    assert (Runner.resume, Runner.load_checkpoint, dict(CheckpointLoader._schemes)) == before


def test_other_models_are_read_as_ever(tmp_path, monkeypatch):
    """mmengine's own loader of local files is back after a masked model was read."""
    # A config of the benchmarks, read by another test of this process, replaces it for good.
    stock = {**CheckpointLoader._schemes, "": load_from_local}
    monkeypatch.setattr(CheckpointLoader, "_schemes", stock)
    install()
    torch.save(dict(options=argparse.Namespace(seed=1)), tmp_path / "theirs.pth")
    with resume.read_safely():
        assert CheckpointLoader._schemes[""] is resume.load_from_local
        with pytest.raises(RuntimeError, match=r"it holds argparse\.Namespace"):
            CheckpointLoader.load_checkpoint(str(tmp_path / "theirs.pth"))
    assert CheckpointLoader._schemes[""] is load_from_local


def test_torch_s_own_switch_counts(tmp_path, monkeypatch):
    torch.save(dict(options=argparse.Namespace(seed=1)), tmp_path / "mine.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with resume.read_safely():
        got = CheckpointLoader.load_checkpoint(str(tmp_path / "mine.pth"))
    assert got["options"].seed == 1
