"""Every config of the comparison on ImageNet for two steps, on generated images.

Of a config are replaced: the images, of each batch two; the length; and on a machine without a GPU
mixed precision, which mmengine has for GPUs alone, by float32. Model, crops, augmentations,
optimizer, its constructor, schedules and hooks are the config's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from benchmarks.evidence_kit import EVALUATIONS, arms, settings
from benchmarks.markdown import markdown_table

PACKAGES = ("mmpretrain", "mmengine", "mmcv", "torch")


def generated_images(root: Path, classes: int) -> None:
    """A noisy image of each class to train on and one to test on."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(folder / "0.jpg")


def shortened(cfg: Config, images: Path, work_dir: Path, steps: int = 2, batch: int = 2) -> Config:
    """The same config for the first ``steps`` steps."""
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if name in cfg:
            loader = cfg[name]
            loader.update(batch_size=batch, num_workers=0, persistent_workers=False)
            loader.dataset.update(data_root=str(images), indices=steps * batch)
    if not torch.cuda.is_available() and cfg.optim_wrapper.get("type") == "AmpOptimWrapper":
        cfg.optim_wrapper.type = "OptimWrapper"
        cfg.optim_wrapper.pop("loss_scale", None)
    cfg.train_cfg.update(max_epochs=1)
    cfg.default_hooks.logger.update(interval=1)
    cfg.resume = False
    cfg.work_dir = str(work_dir)
    return cfg


def trained(cfg: Config) -> dict[str, Any]:
    """What the Runner of a config had, the loss of each step, and the accuracy of an evaluation.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    begin = time.perf_counter()
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = runner.message_hub.get_scalar("train/loss").data[0].tolist()
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(f"expected finite losses, got {losses} in {cfg.work_dir}")
    accuracies = runner.message_hub.log_scalars.get("val/accuracy/top1")
    wrapper = runner.optim_wrapper
    groups = wrapper.optimizer.param_groups
    return dict(
        wrapper=type(wrapper).__name__,
        optimizer=type(wrapper.optimizer).__name__,
        rates=len({group["lr"] for group in groups}),
        decays=len({group["weight_decay"] for group in groups}),
        schedules=" ".join(type(each).__name__ for each in runner.param_schedulers),
        losses=" ".join(f"{loss:.4f}" for loss in losses),
        top1=f"{accuracies.current():.0f}" if accuracies else "",
        seconds=f"{time.perf_counter() - begin:.0f}",
    )


def rehearse(only: str, work_dirs: Path) -> list[dict[str, Any]]:
    """Every config for two steps, into ``work_dirs``: a row of what each had.

    The evaluations of a setting start from the checkpoint of its first arm, since all its arms have
    one encoder.

    Args:
        only: part of ``SETTING/MASKS``.
        work_dirs: gets the images too, and keeps all but the checkpoints; it must be new or empty,
            because real trainings have folders of the same names.

    Raises:
        ValueError: a folder that holds something.
    """
    if work_dirs.exists() and any(work_dirs.iterdir()):
        raise ValueError(
            f"expected a new or empty folder for the rehearsal, because it writes and deletes "
            f"checkpoints there, got {work_dirs}"
        )
    rows: list[dict[str, Any]] = []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    same = {name: import_module(name).__version__ for name in PACKAGES} | {"device": device}
    for setting in settings():
        chosen = [arm for arm in arms(setting) if only in f"{setting.name}/{arm.stem}"]
        images = work_dirs / "images" / setting.name
        if chosen:
            generated_images(images, 100 if setting.name.startswith("in100") else 1000)
        for arm in chosen:
            place = work_dirs / setting.name / arm.stem / "seed0"
            runs = {arm: place}
            if arm == chosen[0]:
                runs |= {setting / f"{name}.py": place / name for name in EVALUATIONS}
            for path, work_dir in runs.items():
                cfg = shortened(Config.fromfile(path), images, work_dir)
                if path != arm:
                    cfg.model.backbone.init_cfg.checkpoint = str(place / "epoch_1.pth")
                name = f"{setting.name}/{path.stem}"
                rows.append(dict(config=name) | trained(cfg) | same)
                print(name, flush=True)
            for checkpoint in place.rglob("*.pth"):  # 1.3 GB of ViT-B's each
                checkpoint.unlink()
    return rows


def page(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: a row per config."""
    versions = ", ".join(f"{name} {rows[0][name]}" for name in PACKAGES)
    head = ["config", "optimizer", "rates", "decays", "schedules", "losses", "top-1", "seconds"]
    cells = [
        [row["config"], f"{row['optimizer']} in {row['wrapper']}", row["rates"], row["decays"],
         row["schedules"], row["losses"], row["top1"], row["seconds"]]
        for row in rows
    ]  # fmt: skip
    return "\n".join([
        "Every config of `configs/mmpretrain/evidence` for two steps of two generated images.",
        "Made by `python -m benchmarks.evidence_kit rehearse --results docs/results`. "
        "Of a config are",
        "replaced: the images, of each batch two; the length; and on a machine without a GPU mixed",
        "precision, by float32. Optimizer and schedules are those that the Runner had; *rates* and",
        "*decays* are how many different learning rates and weight decays its parameters had, with",
        "layer decay one rate for each layer. *Losses* are of the two steps, *top-1* of four",
        "generated images: they say that it runs, and nothing of accuracy. `linear` and `finetune`",
        "start from the checkpoint of the setting's first config.",
        "",
        f"On {rows[0]['device']}, with {versions}; seconds are of a busy machine.",
        "",
        *markdown_table(head, cells),
        "",
    ])  # fmt: skip
