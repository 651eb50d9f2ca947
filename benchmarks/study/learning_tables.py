"""The tables of docs/results/learning.md, from the CSV files of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.markdown import markdown_table
from benchmarks.study.cifar_arms import CPU
from benchmarks.study.evidence import fill, rows_of
from benchmarks.study.experiments import CHOSEN, PILOTED
from benchmarks.study.settings import USABLE
from benchmarks.study.stats import compare
from benchmarks.study.store import Row
from benchmarks.study.tables import Cell, by_cell, cell, interval, label, spread

FIXED: tuple[Cell, ...] = tuple(("random", ratio) for ratio in (0.375, 0.5, 0.75))
STOCK: Cell = ("random", 0.75)
PROGRESS: Cell = ("progress, inclusion", 0.75)
# The best setting of each data set that the study knows, docs/evidence.md.
BEST_FIXED: dict[str, Cell] = {
    "shapes": ("adversarial", CHOSEN["shapes"]["adversarial"]),
    "digits": ("cooperative, unweighted", CHOSEN["digits"]["cooperative"]),
}
# How a pilot may choose: the column of its short trainings, and whether more is better.
MEASURES: dict[str, tuple[str, int]] = {
    "ruler": ("error_random_0.5", -1), "10-NN": ("knn", 1), "linear probe": ("probe", 1),
}  # fmt: skip


def write_learning(results: Path) -> None:
    """Make the page's tables anew; where there is no page yet, nothing."""
    page = results / "learning.md"
    if page.exists():
        fill(page, results, TABLES)


def mean_of(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))


def rewards(data: str) -> Callable[[Path], Sequence[str]]:
    """Every reward at every ratio beside the best random masks of these very seeds."""

    def table(results: Path) -> Sequence[str]:
        rows = rows_of(results, "learning", "tune", data)
        if data == "shapes":
            rows += rows_of(results, "noise", "tune", data)
        return beside_random(rows)

    return table


def on_cifar(results: Path) -> Sequence[str]:
    """Progress beside random masks at 0.75, on report seeds."""
    rows = rows_of(results, "cifar_cpu", "report", CPU.data)
    return beside_random([row for row in rows if cell(row) in (STOCK, PROGRESS)])


def beside_random(rows: Sequence[Row]) -> Sequence[str]:
    """The cells of these rows, the best first, beside the best random masks among them."""
    if not rows:
        return ["Not run yet."]
    columns = {
        "adversarial_gain": "gain", "foreground_lift": "foreground lift",
        "noise_lift": "noise lift", "cpu_seconds": "CPU seconds",
    }  # fmt: skip
    probe, knn = by_cell(rows, "probe"), by_cell(rows, "knn")
    others = {column: by_cell(rows, column) for column in columns}
    others = {column: values for column, values in others.items() if values}
    random = {one: values for one, values in probe.items() if one[0] == "random"}
    best = max(random, key=lambda one: mean_of(random[one]))
    lines = []
    for one in sorted(probe, key=lambda one: -mean_of(probe[one])):
        difference = compare(probe[one], probe[best])
        less = "" if one == best else f"{difference.mean:+.3f}"
        if less and len(difference.differences) > 1:
            less += f" {interval(difference)}"
        numbers = [spread(list(values.get(one, {}).values())) for values in others.values()]
        values = [spread(list(found[one].values())) for found in (probe, knn)]
        name, ratio = label(one)
        if "ruler" in name:
            ratios = by_cell(rows, "mask_ratio").get(one, {})
            ratio = f"{spread(list(ratios.values()))} on average"
        lines.append([name, ratio, len(probe[one]), *values, less, *numbers])
    head = [
        "masks", "ratio", "seeds", "linear probe", "10-NN", "less the best random masks'",
        *(columns[column] for column in others),
    ]  # fmt: skip
    return markdown_table(head, lines)


def reported(results: Path) -> Sequence[str]:
    """Of report seeds: what set itself, beside random masks at their best ratio and beside the best
    fixed setting, both chosen on tuning seeds.
    """
    lines = []
    for data, fixed in BEST_FIXED.items():
        found = by_cell(rows_of(results, "learning_report", "report", data), "probe")
        known = by_cell(rows_of(results, "report", "report", data), "probe")
        random: Cell = ("random", CHOSEN[data]["random"])
        for one in found:
            texts = []
            for other in (random, fixed):
                difference = compare(found[one], known[other])
                texts.append(f"{difference.mean:+.3f} {interval(difference)}")
            ratio = "" if "ruler" in one[0] else label(one)[1]
            count = len(set(found[one]) & set(known[random]))
            lines.append([data, one[0], ratio, count, spread(list(found[one].values())), *texts])
    if not lines:
        return ["Not run yet."]
    head = ["images", "masks", "ratio", "n", "linear probe", "less random", "less the best fixed"]
    return markdown_table(head, lines)


def whole_probe(results: Path, data: str) -> dict[Cell, float]:
    """The probe of each piloted setting after the whole training, mean over tuning seeds."""
    rows = rows_of(results, "grid", "tune", data)
    return {
        one: mean_of(values) for one, values in by_cell(rows, "probe").items() if one[0] in PILOTED
    }


def losses(rows: Sequence[Row], whole: Mapping[Cell, float], among: Sequence[str]) -> list[list]:
    """What each way to choose loses, seed by seed of the pilot."""
    among_these = {one: value for one, value in whole.items() if one[0] in among}
    top = max(among_these.values())
    lines = []
    for name, (column, sign) in MEASURES.items():
        short = by_cell(rows, column)
        seeds = sorted({seed for values in short.values() for seed in values})
        lost, chosen = [], []
        for seed in seeds:
            found = {
                one: sign * values[seed]
                for one, values in short.items()
                if one in among_these and seed in values
            }
            pick = max(found, key=lambda one: found[one])
            lost.append(top - whole[pick])
            chosen.append(" ".join(label(pick)))
        lines.append([f"pilot, by {name}", spread(lost), len(seeds), "; ".join(chosen)])
    for one in FIXED:
        lines.append([f"always {' '.join(label(one))}", spread([top - whole[one]]), "", ""])
    return lines


def pilots(results: Path) -> Sequence[str]:
    """What choosing by short trainings loses of the best whole training's probe."""
    lines = []
    for data in USABLE:
        rows = rows_of(results, "pilot", "tune", data)
        if not rows:
            continue
        whole = whole_probe(results, data)
        for words, among in (("all", PILOTED), ("random masks", ("random",))):
            lines += [[data, words, *line] for line in losses(rows, whole, among)]
    if not lines:
        return ["Not run yet."]
    return markdown_table(
        ["images", "among", "choice", "probe lost", "seeds", "what was chosen"], lines
    )


TABLES = {f"rewards-{data}": rewards(data) for data in USABLE} | {
    "rewards-cifar": on_cifar, "reported": reported, "pilots": pilots,
}  # fmt: skip
