"""Say in a few lines what a training run has learned and left:  python demo/report.py WORK_DIR"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmpretrain.apis import get_model  # noqa: E402

from amn_masking.tools.knn import evaluate  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PROBE = ROOT / "configs/mmpretrain/benchmarks/vit-tiny_linear_photos.py"


def iteration(picture: Path) -> int:
    """Of ``masking_N.png``."""
    return int(picture.stem.split("_")[1])


def first_and_last(rows: list[dict], name: str) -> tuple[float, float]:
    """The first value that was measured, and the mean of the last three."""
    values = [row[name] for row in rows if name in row]
    measured = [
        value for value, before in zip(values, [None, *values], strict=False) if value != before
    ]
    last = measured[-3:]
    return measured[0], sum(last) / len(last)


def neighbours(probe: Config, checkpoint: Path, folder: Path) -> tuple[float, float]:
    """k-NN accuracy of the encoder, untrained and trained."""
    untrained = get_model(probe)
    weights = {f"backbone.{name}": value for name, value in untrained.backbone.state_dict().items()}
    torch.save(dict(state_dict=weights), folder / "untrained.pth")
    before, after = (evaluate(probe, path) for path in (folder / "untrained.pth", checkpoint))
    return before["accuracy"], after["accuracy"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--data", default="data/photos", help="folder of photographs")
    args = parser.parse_args()
    runs = sorted(args.work_dir.glob("*/vis_data/scalars.json"))
    if not runs:
        print(f"no finished run in {args.work_dir}", file=sys.stderr)
        return 1
    run = runs[-1].parents[1]
    rows = [json.loads(line) for line in runs[-1].read_text().splitlines()]
    _, gain = first_and_last(rows, "adversarial_gain")
    error = first_and_last(rows, "random_mask_error")
    pictures = sorted((run / "vis_data/vis_image").glob("masking_*.png"), key=iteration)
    checkpoint = Path((args.work_dir / "last_checkpoint").read_text().strip())
    probe = Config.fromfile(PROBE)
    for loader in (probe.train_dataloader, probe.val_dataloader):
        loader.dataset.data_root = args.data
        loader.num_workers, loader.persistent_workers = 0, False
    before, after = neighbours(probe, checkpoint, run)
    print()
    print(f"masks           {gain:.2f} times as hard as random masks (1.00 = nothing learned)")
    print(f"reconstruction  error under random masks {error[0]:.2f} before, {error[1]:.2f} after")
    print(f"features        20-NN accuracy {before:.2f} untrained, {after:.2f} trained;")
    print("                56 crops of 14 photographs: so short a training need not raise it")
    print(f"checkpoint      {os.path.relpath(checkpoint)}")
    print(f"look at         {pictures[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
