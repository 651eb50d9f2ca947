"""The comparison of masks on ImageNet: its table from work dirs, and a rehearsal of its configs.

    python -m benchmarks.evidence_kit table work_dirs/evidence
    python -m benchmarks.evidence_kit rehearse [--only in100_vit-s] [--results docs/results]

The configs are in configs/mmpretrain/evidence, whose README says how to run them. ``table`` reads
``SETTING/MASKS/seedN/{linear,finetune}`` and prints, for each setting, the top-1 accuracy of the
validation after the last epoch, and the difference to random masks by seed. ``rehearse`` trains
every config for two steps on generated images (benchmarks/evidence_rehearsal.py).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from mmengine.config import Config

from benchmarks.markdown import markdown_table, write_results
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


def arms(setting: Path) -> list[Path]:
    """The configs of its pre-trainings."""
    return [path for path in sorted(setting.glob("*.py")) if path.stem not in EVALUATIONS]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.evidence_kit", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    from_work_dirs = commands.add_parser("table", help="the table, from work dirs")
    from_work_dirs.add_argument("work_dirs", type=Path)
    rehearsal = commands.add_parser("rehearse", help="every config for two steps")
    rehearsal.add_argument(
        "--only", default="", help="part of SETTING/MASKS, such as in100_vit-s/random"
    )
    rehearsal.add_argument(
        "--work-dirs",
        type=Path,
        help="new or empty, gets all but checkpoints; by default a temporary folder",
    )
    rehearsal.add_argument("--results", type=Path, help="gets rehearsal.csv and rehearsal.md")
    args = parser.parse_args(arguments)
    if args.command == "table":
        print(table(args.work_dirs))
        return
    from benchmarks.evidence_rehearsal import page, rehearse

    with tempfile.TemporaryDirectory() as temporary:
        rows = rehearse(args.only, args.work_dirs or Path(temporary))
    if not rows:
        parser.error(f"expected --only to be part of a SETTING/MASKS, got {args.only!r}")
    if args.results:
        title = "Rehearsal of the comparison on ImageNet"
        write_results(args.results / "rehearsal.csv", title, rows, page)
    else:
        print(page(rows))


if __name__ == "__main__":
    main()
