"""The tables of docs/estimators.md, from the rows of docs/results.

python -m benchmarks.estimators_page
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import estimator_trained, original_loop, planted_difficulty
from benchmarks.study.evidence import fill

TABLES = {
    "estimators_trained": estimator_trained.table,
    "planted": planted_difficulty.table,
    "original_loop": partial(original_loop.table, arms=original_loop.PAGE),
}


def lines(name: str, results: Path) -> Sequence[str]:
    """A table, from the rows of that name."""
    with (results / f"{name}.csv").open(newline="") as file:
        return TABLES[name](list(csv.DictReader(file))).splitlines()


def write(docs: Path) -> None:
    """Make the tables anew; errors as for ``fill``."""
    fill(docs / "estimators.md", docs / "results", {name: partial(lines, name) for name in TABLES})


if __name__ == "__main__":
    write(Path("docs"))
