"""The comparison of masks on ImageNet: its table from work dirs, and a rehearsal of its configs.

    python -m benchmarks.evidence_kit table work_dirs/evidence
    python -m benchmarks.evidence_kit rehearse [--only in100_vit-s]

The configs are in configs/mmpretrain/evidence, whose README says how to run them. ``table`` reads
``SETTING/MASKS/seedN/{linear,finetune}`` and prints, for each setting, the top-1 accuracy of the
validation after the last epoch, and the difference to random masks by seed. ``rehearse`` runs every
config for real on a few generated images: two steps of pre-training, then the evaluation of what
they left.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from benchmarks.markdown import markdown_table
from benchmarks.study.stats import compare

CONFIGS = Path(__file__).resolve().parents[1] / "configs/mmpretrain/evidence"
EVALUATIONS = ("linear", "finetune")
RANDOM = "random"

Found = dict[str, dict[str, dict[int, float]]]  # masks, evaluation, seed: accuracy


def accuracies(setting: Path) -> Found:
    """The top-1 accuracy of each finished evaluation below ``SETTING/``, in percent: after its last
    epoch, since the best one would be chosen on the images that it is reported on.
    """
    found: Found = {}
    for log in sorted(setting.glob("*/seed*/*/*/vis_data/scalars.json")):
        masks, seed, evaluation = log.relative_to(setting).parts[:3]
        if evaluation not in EVALUATIONS:
            continue
        epochs = Config.fromfile(log.parent / "config.py").train_cfg.max_epochs
        for row in map(json.loads, log.read_text().splitlines()):
            if "accuracy/top1" in row and row["step"] == epochs:
                by_seed = found.setdefault(masks, {}).setdefault(evaluation, {})
                by_seed[int(seed.removeprefix("seed"))] = row["accuracy/top1"]
    return found


def table(root: Path) -> str:
    """Markdown, a table a setting.

    Raises:
        ValueError: no finished evaluation, or a setting without random masks.
    """
    parts = []
    for setting in sorted(path for path in root.glob("*") if path.is_dir()):
        found = accuracies(setting)
        if not found:
            continue
        if RANDOM not in found:
            raise ValueError(
                f"expected {setting}/{RANDOM}/seedN with a finished evaluation, to compare with; "
                f"got {', '.join(sorted(found))}"
            )
        lines = []
        for masks in sorted(found, key=lambda name: (name != RANDOM, name)):
            for evaluation, by_seed in found[masks].items():
                cells = [f"{np.mean(list(by_seed.values())):.2f}", "", ""]
                others = found[RANDOM].get(evaluation, {})
                if masks != RANDOM and by_seed.keys() & others.keys():
                    difference = compare(by_seed, others)
                    cells[1] = f"{difference.mean:+.2f}"
                    ends = difference.low, difference.high
                    if math.isnan(difference.low):  # too few seeds for an interval
                        ends = min(difference.differences), max(difference.differences)
                        cells[2] = f"({ends[0]:+.2f} to {ends[1]:+.2f} by seed)"
                    else:
                        cells[2] = f"{ends[0]:+.2f} to {ends[1]:+.2f}"
                lines.append([masks, evaluation, len(by_seed), *cells])
        head = ["masks", "evaluation", "n", "top-1", "less random masks", "95 %"]
        parts += [f"## {setting.name}", "", *markdown_table(head, lines), ""]
    if not parts:
        raise ValueError(
            f"expected finished evaluations in {root}/SETTING/MASKS/seedN/"
            f"{{{','.join(EVALUATIONS)}}}, found none"
        )
    return "\n".join(parts)


def settings() -> list[Path]:
    """The folders of configs, one for each size of images and model."""
    return sorted(path for path in CONFIGS.glob("*_vit-*") if path.is_dir())


def generated_images(root: Path, classes: int) -> None:
    """A noisy image of each class to train on and one to test on."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(folder / "0.jpg")


def on_a_cpu(cfg: Config, images: Path, work_dir: Path, steps: int = 2, batch: int = 2) -> Config:
    """The same model, pictures and hooks for ``steps`` steps, in float32."""
    count = steps * batch
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if name in cfg:
            loader = cfg[name]
            loader.update(batch_size=batch, num_workers=0, persistent_workers=False)
            loader.dataset.update(data_root=str(images), indices=count)
    optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.05)
    cfg.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=optimizer,
        paramwise_cfg=cfg.optim_wrapper.get("paramwise_cfg"),
    )
    cfg.param_scheduler = None
    cfg.train_cfg.update(max_epochs=1)
    cfg.default_hooks.checkpoint.update(interval=1)
    cfg.default_hooks.logger.update(interval=1)
    cfg.resume = False
    cfg.work_dir = str(work_dir)
    return cfg


def rehearse(only: str, work_dirs: Path, train: Callable[[Config], Any]) -> list[str]:
    """Every config for two steps, into ``work_dirs``; the names of those that ran.

    Args:
        only: part of ``SETTING/MASKS``.
        work_dirs: gets the images too.
        train: what trains a config.
    """
    done = []
    for setting in settings():
        arms = [path for path in sorted(setting.glob("*.py")) if path.stem not in EVALUATIONS]
        arms = [arm for arm in arms if only in f"{setting.name}/{arm.stem}"]
        if not arms:
            continue
        images = work_dirs / "images" / setting.name
        generated_images(images, 100 if setting.name.startswith("in100") else 1000)
        for arm in arms:
            place = work_dirs / setting.name / arm.stem / "seed0"
            train(on_a_cpu(Config.fromfile(arm), images, place))
            for evaluation in EVALUATIONS:
                cfg = on_a_cpu(
                    Config.fromfile(setting / f"{evaluation}.py"), images, place / evaluation
                )
                cfg.model.backbone.init_cfg.checkpoint = str(place / "epoch_1.pth")
                train(cfg)
            done.append(f"{setting.name}/{arm.stem}")
            print(done[-1], flush=True)
    return done


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.evidence_kit", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    from_work_dirs = commands.add_parser("table", help="the table, from work dirs")
    from_work_dirs.add_argument("work_dirs", type=Path)
    rehearsal = commands.add_parser("rehearse", help="every config, two steps on the CPU")
    rehearsal.add_argument(
        "--only", default="", help="part of SETTING/MASKS, such as in100_vit-s/random"
    )
    rehearsal.add_argument("--work-dirs", type=Path, help="kept; by default a temporary folder")
    args = parser.parse_args(arguments)
    if args.command == "table":
        print(table(args.work_dirs))
        return
    from mmengine.runner import Runner

    with tempfile.TemporaryDirectory() as temporary:
        place = args.work_dirs or Path(temporary)
        rehearse(args.only, place, lambda cfg: Runner.from_cfg(cfg).train())
        print(table(place))


if __name__ == "__main__":
    main()
