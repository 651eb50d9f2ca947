"""Say in a few lines what a training run left and where:  python demo/report.py WORK_DIR"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def step(picture: Path) -> int:
    """Iteration of ``masking_N.png``."""
    return int(picture.stem.split("_")[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path)
    work_dir = parser.parse_args().work_dir
    runs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    if not runs:
        print(f"no finished run in {work_dir}", file=sys.stderr)
        return 1
    run = runs[-1].parents[1]
    rows = [json.loads(line) for line in runs[-1].read_text().splitlines()]
    pictures = sorted(
        (run / "vis_data" / "vis_image").glob("masking_*.png"),
        key=step,
    )
    # A row is a mean over 10 iterations (log_processor); a tenth of the run is steadier.
    tenth = max(1, len(rows) // 10)
    first, last = (
        sum(row["reconstruction"] for row in part) / tenth for part in (rows[:tenth], rows[-tenth:])
    )
    checkpoint = os.path.relpath((work_dir / "last_checkpoint").read_text().strip())
    print()
    print(f"reconstruction loss  {first:.3f} in the first tenth of the run, {last:.3f} in the last")
    print(f"checkpoint           {checkpoint}")
    print(f"log                  {run / (run.name + '.log')}")
    print(f"pictures             {pictures[0]} (at iteration {step(pictures[0])})")
    print(f"                     {pictures[-1]} (at iteration {step(pictures[-1])})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
