"""Say in a few lines what a training run left and where:  python benchmarks/report.py WORK_DIR"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


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
        key=lambda path: int(path.stem.split("_")[1]),
    )
    first, last = rows[0]["reconstruction"], rows[-1]["reconstruction"]
    checkpoint = os.path.relpath((work_dir / "last_checkpoint").read_text().strip())
    print()
    print(f"reconstruction loss  {first:.3f} at the start, {last:.3f} at the end")
    print(f"checkpoint           {checkpoint}")
    print(f"log                  {run / (run.name + '.log')}")
    print(f"pictures             {pictures[0]} (start)")
    print(f"                     {pictures[-1]} (end)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
