"""Every masked-image pre-training config that mmpretrain ships, at its true size, one real step.

    python -m tests.methods.shipped_recipes [--only mae_vit-base] [--results FOLDER]

What README's form without a config does: ``model.type=amn_masking.X`` and ``model.masking``. The
networks that make targets (CLIP, DALL-E, VQ-KD) get random weights, so that nothing is downloaded;
all else is the recipe's. A Runner trains for one step of two photographs. Writes a row per config
for the stack that is installed, as soon as it is there, to docs/results/shipped.csv, and
docs/results/shipped.md; fails if one fails that does not fail in stock mmpretrain too.
Part of what is run before a release (``make recipes``), not of CI: the largest take 20 GB.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.utils import register_all_modules

from amn_masking.adapters.mmpretrain import METHODS
from benchmarks.markdown import markdown_table
from demo.photos import write
from tests.methods.matrix import RESULTS, stack
from tests.methods.small_methods import SMALL, on_the_cpu, stock_configs

LEARNED = dict(type="AdversarialMasking", mask_ratio=0.5)
# MILAN's own configs leave it out and fail; see docs/results/methods.md.
MENDED = {"MILAN": {"model.neck.embed_dim": 768}}


def recipes() -> dict[str, Config]:
    """The configs by name: all whose model is one of the methods."""
    register_all_modules()
    found = {}
    folders = sorted({file.split("/")[0] for file, _, _ in SMALL.values()})
    for path in (
        path for name in folders for path in sorted((stock_configs() / name).glob("*.py"))
    ):
        cfg = Config.fromfile(path)
        if cfg.get("model", {}).get("type") in METHODS:
            found[path.stem] = cfg
    return found


def without_downloads(cfg: Config) -> None:
    """Random weights for the network that makes the targets."""
    target = cfg.model.get("target_generator")
    if target is None:
        return
    if target.type == "CLIPGenerator":
        width = cfg.model.head.get("num_embed") or cfg.model.neck.get("predict_feature_dim", 512)
        cfg.model.target_generator = dict(type="TinyCLIP", dim=width)
    elif "init_cfg" in target:
        target.init_cfg = None


def one_step(cfg: Config, photos: Path, ours: bool) -> float:
    """The loss of one step in a Runner."""
    cfg = cfg.copy()
    without_downloads(cfg)
    if ours:
        mended: dict[str, Any] = MENDED.get(cfg.model.type, {})
        cfg.merge_from_dict({**mended, "model.type": f"amn_masking.{cfg.model.type}"})
        cfg.model.masking = dict(LEARNED)
    on_the_cpu(cfg, photos, batch_size=2)
    cfg.train_dataloader.dataset.indices = 2
    with tempfile.TemporaryDirectory() as work_dir:
        cfg.work_dir, cfg.experiment_name = work_dir, Path(work_dir).name
        runner = Runner.from_cfg(cfg)
        runner.train()
    return float(runner.message_hub.get_scalar("train/loss").data[0][-1])


def check(name: str, cfg: Config, photos: Path) -> dict[str, str]:
    row = {"stack": stack(), "config": name}
    for ours, kind in ((True, "masked"), (False, "stock")):
        if not ours and row["masked"] == "yes":
            continue  # the stock one is tried where ours fails
        begin = time.perf_counter()
        try:
            finite = torch.isfinite(torch.tensor(one_step(cfg, photos, ours)))
            row[kind] = "yes" if finite else "not finite"
        except Exception as error:
            row[kind] = f"{type(error).__name__}: {str(error)[:80]}"
        row.setdefault("seconds", f"{time.perf_counter() - begin:.0f}")
    return {"stock": "", **row}


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: a row per config, a column per stack."""
    stacks = sorted({row["stack"] for row in rows}, key=lambda name: name.startswith("fork"))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = f"yes, {row['seconds']} s"
        if row["masked"] != "yes":
            cell = f"no: {row['masked']}"
            cell += "" if row["stock"] == "yes" else "; fails in stock mmpretrain too"
        cells.setdefault(row["config"], {})[row["stack"]] = cell
    counts = [
        f"- {name}: {sum(r['masked'] == 'yes' for r in rows if r['stack'] == name)} of "
        f"{sum(r['stack'] == name for r in rows)} configs train"
        for name in stacks
    ]
    return "\n".join([
        "# Every shipped config",
        "",
        "Each masked-image pre-training config that mmpretrain ships, at its true size, with",
        "learned masks: one step of two photographs by the Runner on a CPU. Made by `make recipes`",
        "before a release. Seconds are of the step with its set-up, on a busy machine. MILAN's is",
        "given `model.neck.embed_dim=768`, without which it fails in stock mmpretrain too.",
        "",
        *counts,
        "",
        *markdown_table(
            ["config", *stacks],
            ([name, *(mine.get(s, "-") for s in stacks)] for name, mine in sorted(cells.items())),
        ),
        "",
    ])  # fmt: skip


def save(rows: list[dict[str, str]], folder: Path) -> None:
    """The rows in the place of those of the same stack and config."""
    folder.mkdir(parents=True, exist_ok=True)
    path, known = folder / "shipped.csv", []
    if path.exists():
        with path.open(newline="") as file:
            known = list(csv.DictReader(file))
    new = {(row["stack"], row["config"]) for row in rows}
    rows = rows + [row for row in known if (row["stack"], row["config"]) not in new]
    rows.sort(key=lambda row: (row["stack"], row["config"]))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["stack", "config", "masked", "stock", "seconds"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "shipped.md").write_text(table(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", help="configs whose name holds this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), train_crops=2, val_crops=1)
        for name, cfg in recipes().items():
            if not args.only or any(part in name for part in args.only):
                rows.append(check(name, cfg, Path(folder)))
                print(rows[-1], flush=True)
                save(rows, args.results)
    return int(any(row["masked"] != "yes" and row["stock"] in ("", "yes") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
