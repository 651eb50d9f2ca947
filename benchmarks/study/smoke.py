"""The smallest experiment again, from end to end, beside the committed numbers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.study import store
from benchmarks.study.pool import csv_of, run_all, runs_of, workers
from benchmarks.study.tables import current, write_all

EXPERIMENT, SEEDS = "smoke", [0, 1]


def rerun(jobs: int, results: Path) -> None:
    """Run it in a new folder, make its tables, and print its numbers beside those in ``results``.

    On another processor or with other versions the two differ: training is chaotic, and one test
    image in 500 is 0.002 of the probe. On one machine they are equal.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with workers(jobs) as pool:
            run_all(EXPERIMENT, runs_of(EXPERIMENT, SEEDS), pool, Path(folder))
        write_all(Path(folder))
        rows = current(EXPERIMENT, store.read(csv_of(Path(folder), EXPERIMENT)))
        table = (Path(folder) / "study.md").read_text()
    print(table[table.index(f"## {EXPERIMENT}") :])
    committed = {store.key(row): row for row in store.read(csv_of(results, EXPERIMENT))}
    for row in rows:
        before = committed.get(store.key(row), {}).get("probe", "none")
        print(f"{row['strategy']}, seed {row['seed']}: {row['probe']} now, {before} committed")
    print(f"{time.perf_counter() - begin:.0f} s in all")
