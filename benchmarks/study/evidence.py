"""The tables of the pages on evidence and price, from the CSV files of the runs: what stands
between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is made anew, the words around it stay.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.markdown import markdown_table
from benchmarks.overhead import SHIPPED, verdicts
from benchmarks.study import store
from benchmarks.study.figures import probe_against_ratio
from benchmarks.study.matrix import read as read_matrix
from benchmarks.study.pool import csv_of
from benchmarks.study.settings import SETS, USABLE
from benchmarks.study.stats import compare, holm
from benchmarks.study.store import Row
from benchmarks.study.tables import (
    ACCURACY,
    MASKS,
    SPLITS,
    Cell,
    by_cell,
    cell,
    current,
    interval,
    label,
    of_split,
)

PRICED = ("ColorNoiseMasking", "AttentionMasking", SHIPPED, "AMN, downsample 1")
STRENGTHS = ("cooperative", "frozen", "adversarial", "curriculum", "random")


def write_details(results: Path) -> None:
    """Make the tables of shapes_and_digits.md, and its figures, anew; errors as for ``fill``."""
    fill(results / "shapes_and_digits.md", results, TABLES)
    for data in USABLE:
        rows = [row for name in ("grid", "others") for row in rows_of(results, name, "tune", data)]
        if rows:
            probe_against_ratio(by_cell(rows, "probe"), results / f"evidence_{data}.png")


def fill(path: Path, results: Path, known: Mapping[str, Callable[[Path], Sequence[str]]]) -> None:
    """Make the tables of a page anew.

    Args:
        path: the page.
        results: folder of the CSV files.
        known: what makes each table.

    Raises:
        ValueError: the page has a place for a table that is not known, or none for one that is.
    """
    text = path.read_text()
    places = set(re.findall(r"<!-- begin (\S+) -->", text))
    if places != set(known):
        raise ValueError(
            f"{path} expected a place, <!-- begin NAME --> to <!-- end NAME -->, for each table; "
            f"unknown or missing: {sorted(places ^ set(known))}"
        )
    for name, table in known.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{path} has {begin} but no {end}")
        text = "\n".join([before + begin, "", *table(results), "", end + after])
    path.write_text(text)


def rows_of(results: Path, experiment: str, split: str, data: str) -> list[Row]:
    return of_split(current(experiment, store.read(csv_of(results, experiment))), split, data)


def mean(values: dict[int, float] | None) -> str:
    return f"{np.mean(list(values.values())):.3f}" if values else ""


def counted(counts: Collection[int], split: str) -> str:
    """How many seeds of a split the cells of a table have."""
    words = SPLITS[split] if set(counts) != {1} else SPLITS[split].removesuffix("s")
    return f"{' or '.join(map(str, sorted(counts)))} {words}"


def recipe(results: Path) -> list[str]:
    """Which recipes are usable."""
    metrics = {"probe": "probe", "knn": "20-NN", "finetune": "fine-tune"}
    lines = []
    for data in SETS:
        rows = [r for name in ("recipe", "tried") for r in rows_of(results, name, "tune", data)]
        values = {metric: by_cell(rows, metric) for metric in metrics}
        for one in values["probe"]:
            name = one[0].replace("random", "random masks")
            numbers = [mean(values[metric].get(one)) for metric in metrics]
            lines.append([data, name, len(values["probe"][one]), *numbers])
    return markdown_table(["data", "encoder", "seeds", *metrics.values()], lines)


def grid(results: Path) -> list[str]:
    """Probe by strength and ratio, on tuning seeds."""
    lines: list[str] = []
    for data in USABLE:
        rows = rows_of(results, "grid", "tune", data)
        probe = by_cell(rows, "probe")
        ratios = sorted({ratio for _, ratio in probe if ratio is not None})
        seeds = {len(values) for values in probe.values()}
        if not seeds:
            continue
        cells = [[name, *(mean(probe.get((name, r))) for r in ratios)] for name in STRENGTHS]
        lines += [
            "", f"{data}, {counted(seeds, 'tune')}:", "",
            *markdown_table(["masks", *(f"{ratio:g}" for ratio in ratios)], cells),
        ]  # fmt: skip
    return lines[1:]


def beside_random(experiment: str, others: bool = False) -> Callable[[Path], list[str]]:
    """Tables of report seeds: each strategy's probe less that of random masks, and less that of
    the free masks that the tuning seeds like best; then, if asked, its other measures less random
    masks'.
    """

    def tables(results: Path) -> list[str]:
        lines: list[str] = []
        for data in USABLE:
            rows = rows_of(results, experiment, "report", data)
            values = {metric: by_cell(rows, metric) for metric in ACCURACY}
            probe = values["probe"]
            cells = {one[0]: one for one in probe}
            if "random" not in cells:
                continue
            order = sorted(probe, key=lambda one: -np.mean(list(probe[one].values())))
            references = [cells["random"]]
            if (free := best_free(results, data)) in cells:
                references.append(cells[free])
            epochs = {cell(row): json.loads(row["settings"])["recipe"]["epochs"] for row in rows}
            differences = [
                column for one in references for column in (f"less {one[0]}", "95 %", "p")
            ]
            compared = [beside(probe, order, one) for one in references]
            main = [
                [*label(one), epochs[one], mean(probe[one]), *(t for c in compared for t in c[one])]
                for one in order
            ]
            lines += [
                "", f"{data}, {counted({len(probe[references[0]])}, 'report')}:", "",
                *markdown_table(["masks", "ratio", "epochs", "probe", *differences], main),
            ]  # fmt: skip
            if not others:
                continue
            metrics = [metric for metric in ACCURACY[1:] if values[metric]]
            rest = [["random, itself", *(mean(values[m][cells["random"]]) for m in metrics)]]
            for one in order:
                if one[0] != "random":
                    found = [compare(values[m][one], values[m][cells["random"]]) for m in metrics]
                    rest.append([one[0], *(f"{c.mean:+.3f} ({interval(c)})" for c in found)])
            lines += [
                "", f"Other measures less random masks' on {data}, each with its own interval, not "
                "corrected for their number:", "", *markdown_table(["masks", *metrics], rest),
            ]  # fmt: skip
        return lines[1:] or ["Not run yet."]

    return tables


FREE = ("block", "color noise", "color noise, red", "random ratio", "least variance")


def best_free(results: Path, data: str) -> str | None:
    """Of the strategies that learn nothing, without random masks, the best on tuning seeds."""
    probe = by_cell(rows_of(results, "others", "tune", data), "probe")
    free = {one: np.mean(list(probe[one].values())) for one in probe if one[0] in FREE}
    return max(free, key=lambda one: free[one])[0] if free else None


def beside(
    probe: Mapping[Cell, dict[int, float]], cells: Sequence[Cell], reference: Cell
) -> dict[Cell, list[str]]:
    """By cell the difference, its interval and its p, corrected by Holm over the cells."""
    others = [one for one in cells if one != reference]
    found = [compare(probe[one], probe[reference]) for one in others]
    corrected = holm([comparison.p for comparison in found])
    texts = {
        one: [
            f"{comparison.mean:+.3f}",
            interval(comparison),
            f"{p:.3f}" if p >= 0.001 else "<0.001",
        ]
        for one, comparison, p in zip(others, found, corrected, strict=True)
    }
    return {reference: ["", "", ""], **texts}


def means(experiment: str, split: str, metrics: Sequence[str]) -> Callable[[Path], list[str]]:
    """A table of means over seeds."""

    def table(results: Path) -> list[str]:
        lines: list[str] = []
        for data in USABLE:
            rows = rows_of(results, experiment, split, data)
            values = {metric: by_cell(rows, metric) for metric in metrics}
            values = {metric: cells for metric, cells in values.items() if cells}
            if not values:
                continue
            cells = list(dict.fromkeys(map(cell, rows)))
            seeds = {len({r["seed"] for r in rows if cell(r) == c}) for c in cells}
            texts = [[*label(one), *(mean(values[m].get(one)) for m in values)] for one in cells]
            lines += [
                "", f"{data}, {counted(seeds, split)}:", "",
                *markdown_table(["masks", "ratio", *values], texts),
            ]  # fmt: skip
        return lines[1:] or ["Not run yet."]

    return table


def crossed(results: Path) -> list[str]:
    """Errors, trained with the masks of a row under those of a column; the least of each in
    bold.
    """
    lines: list[str] = []
    rows = read_matrix(results)
    for data in USABLE:
        errors: dict[tuple[str, str], list[float]] = {}
        for row in of_split(rows, "report", data):
            errors.setdefault((row["trained"], row["under"]), []).append(float(row["error"]))
        if not errors:
            continue
        names = list(dict.fromkeys(trained for trained, _ in errors))
        means = {pair: float(np.mean(values)) for pair, values in errors.items()}
        least = {under: min(means[trained, under] for trained in names) for under in names}
        count = len(next(iter(errors.values())))
        cells = []
        for trained in names:
            texts = [f"{means[trained, under]:.3f}" for under in names]
            texts = [
                f"**{text}**" if means[trained, under] == least[under] else text
                for text, under in zip(texts, names, strict=True)
            ]
            cells.append([trained, *texts])
        lines += [
            "", f"{data}, ratio 0.5, {counted({count}, 'report')}:", "",
            *markdown_table(["trained with", *names], cells),
        ]  # fmt: skip
    return lines[1:] or ["Not run yet."]


def price(results: Path) -> list[str]:
    """The overhead of some strategies, and whether the shipped network meets its targets."""
    with (results / "overhead.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cells = []
    for row in rows:
        if row["strategy"] in PRICED and row["model"] != "mask path":
            numbers = [row[f"step_{name}"] for name in ("ratio", "low", "high")]
            numbers += [row["flops_ratio"], row["memory_ratio"]]
            ratio, low, high, *counts = [f"{float(n):.3f}" for n in numbers]
            cells.append([row["model"], row["strategy"], ratio, f"{low} to {high}", *counts])
    head = ["model", "masks", "step time", "95 %", "FLOPs", "memory"]
    return [*verdicts(rows), "", *markdown_table(head, cells)]


TABLES: dict[str, Callable[[Path], Sequence[str]]] = {
    "recipe": recipe,
    "grid": grid,
    "report": beside_random("report", others=True),
    "flops": beside_random("flops"),
    "time": beside_random("time"),
    "long": beside_random("long"),
    "masks": means("report", "report", MASKS),
    "matrix": crossed,
    "ablation": means("ablation", "tune", ("probe", *MASKS)),
}
