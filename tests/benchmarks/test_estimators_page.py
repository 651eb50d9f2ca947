"""The tables of docs/estimators.md."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from benchmarks import estimator_trained, original_loop, planted_difficulty
from benchmarks.estimators_page import TABLES, write

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_page_is_made_of_the_committed_rows(tmp_path):
    shutil.copy(DOCS / "estimators.md", tmp_path)
    (tmp_path / "results").mkdir()
    for name in TABLES:
        shutil.copy(DOCS / f"results/{name}.csv", tmp_path / "results")
    write(tmp_path)
    assert (tmp_path / "estimators.md").read_text() == (DOCS / "estimators.md").read_text()


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [
        ("estimators_trained", estimator_trained),
        ("planted", planted_difficulty),
        ("original_loop", original_loop),
    ],
)
def test_so_are_the_pages_of_the_tables_alone(name, benchmark):
    _, _, text = (DOCS / f"results/{name}.md").read_text().partition("\n\n")
    with (DOCS / f"results/{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert text == benchmark.table(rows)
