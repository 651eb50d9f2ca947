"""The real ``mim train``, in a process of its own, at the least size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from amn_masking.adapters.mmpretrain.runner.resume import load_from_local
from tests.conftest import ROOT

PHOTOS_CONFIG = "configs/mmpretrain/mae_amn_vit-tiny_photos.py"

# A ViT of one block at 64 pixels: what takes time here is starting the process.
TINY = {
    "model.backbone.img_size": 64,
    "model.neck.num_patches": 16,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "train_dataloader.batch_size": 14,
    "default_hooks.logger.interval": 1,
    "default_hooks.checkpoint.interval": 1,
    "train_cfg.max_epochs": 1,
}


def mim_train(
    config: str | Path,
    work_dir: Path,
    options: dict | None = None,
    launch: tuple[str, ...] = (),
    fails: bool = False,
    package: str = "mmpretrain",
    site: Path = ROOT,
) -> str:
    """Output of ``mim train``; the test fails if the process does, or does not where it should.

    Args:
        package: whose command and configs.
        site: the folder of our package, which is also the one to be in.
    """
    mim = Path(sys.executable).with_name("mim")
    command = [str(mim), "train", package, str(config), *launch]
    command += ["--work-dir", str(work_dir)]
    if options:
        command += ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
    done = subprocess.run(
        command, cwd=site, capture_output=True, text=True, timeout=900,
        env={**os.environ, "PYTHONPATH": str(site)},  # for hooks of the tests' own
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def scalars(work_dir: Path) -> list[dict]:
    (path,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_from_local(str(path))["state_dict"]


def data_options(photos: Path) -> dict:
    return {
        "train_dataloader.dataset.data_root": photos,
        "train_dataloader.dataset.with_label": False,
    }
