"""docs/results/study.md and its figures, from the CSV files of the runs and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.markdown import markdown_table
from benchmarks.study import store
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.figures import probe_against_ratio
from benchmarks.study.pool import csv_of
from benchmarks.study.settings import ratio_of
from benchmarks.study.stats import ENOUGH, Comparison, compare, holm
from benchmarks.study.store import Row, worth

Cell = tuple[str, float | None]  # a strategy and its mask ratio
SPLITS = {"tune": "tuning seeds", "report": "report seeds"}
ACCURACY = store.FEATURE_METRICS
MASKS = (
    "mask_ratio", "running_gain", "score_auc", "foreground_lift", "noise_lift", "adversarial_gain",
    "random_mask_error", "position_entropy", "mask_distance", "score_entropy",
)  # fmt: skip
ERRORS = tuple(name for name in store.METRICS if name.startswith("error_"))
COSTS = ("cpu_seconds", "flops_encoder", "flops_step")


def write_all(results: Path) -> None:
    """Write study.md and the figures into the folder of the CSV files."""
    lines = [
        "# The study in numbers",
        "",
        "Made by `python -m benchmarks.study tables` from the CSV files beside it; every number is "
        "of small images and small encoders, see `benchmarks/study`. Means over seeds, "
        "with the smallest and the largest in brackets. Settings are chosen on tuning seeds; "
        "report seeds have other images (of CIFAR-10 other test images), and the two are never "
        "put together. An interval is a bootstrap 95 % interval of the mean difference by seed, "
        "p is of a paired t-test, corrected by Holm over all rows of its table; neither is given "
        "for fewer than "
        f"{ENOUGH} seeds.",
    ]
    for experiment in EXPERIMENTS:
        rows = current(experiment, store.read(csv_of(results, experiment)))
        for split, words in SPLITS.items():
            for data in dict.fromkeys(row["data"] for row in rows if row["split"] == split):
                part = of_split(rows, split, data)
                tuning = part if split == "tune" else of_split(rows, "tune", data)
                lines += ["", f"## {experiment}, {data}, {words}", ""]
                lines += section(part, tuning)
                if len({cell(row)[1] for row in part} - {None}) > 1:
                    picture = f"study_{experiment}_{data}_{split}.png"
                    probe_against_ratio(by_cell(part, "probe"), results / picture)
                    lines += ["", f"![probe against mask ratio]({picture})"]
    lines += search_section(store.read(csv_of(results, "search")))
    (results / "study.md").write_text("\n".join(lines) + "\n")


def current(experiment: str, rows: Iterable[Row]) -> list[Row]:
    """The rows of settings that the experiment still has, in its order."""
    order = {setting.to_json(): place for place, setting in enumerate(EXPERIMENTS[experiment]())}
    known = [row for row in rows if row["settings"] in order]
    return sorted(known, key=lambda row: (order[row["settings"]], int(row["seed"])))


def of_split(rows: Sequence[Row], split: str, data: str) -> list[Row]:
    return [row for row in rows if row["split"] == split and row["data"] == data]


def cell(row: Row) -> Cell:
    return row["strategy"], ratio_of(json.loads(row["settings"])["masking"])


def by_cell(rows: Sequence[Row], metric: str) -> dict[Cell, dict[int, float]]:
    """The values of a metric, by cell and seed, where there are any."""
    values: dict[Cell, dict[int, float]] = {}
    for row in rows:
        if row[metric]:
            values.setdefault(cell(row), {})[int(row["seed"])] = float(row[metric])
    return values


def section(rows: Sequence[Row], tuning: Sequence[Row]) -> list[str]:
    """What the runs of one experiment on one data set, of one split, gave."""
    recipes = [json.loads(row["settings"])["recipe"] for row in rows]
    recipe = recipes[0]
    epochs = sorted({one["epochs"] for one in recipes})
    lines = [
        f"{recipe['side']} x {recipe['side']} pixels, patches of {recipe['patch']}; encoder "
        f"{recipe['width']} wide, {recipe['layers']} blocks; "
        f"{' to '.join(map(str, dict.fromkeys([epochs[0], epochs[-1]])))} epochs, batches of "
        f"{recipe['batch']}, lr {recipe['lr']:g}. {machines(rows)}.",
        "",
    ]
    for columns in (ACCURACY, MASKS, ERRORS, COSTS):
        lines += [*metric_table(rows, columns), ""]
    return lines[:-1] + comparisons(rows, tuning)


def machines(rows: Sequence[Row]) -> str:
    """What the runs ran on, with how many of them where there are several."""
    counts = Counter(row["hardware"] for row in rows)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{count} runs on {name}" for name, count in counts.items())


def metric_table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    values = {column: by_cell(rows, column) for column in columns}
    columns = [column for column in columns if values[column]]
    cells = [c for c in dict.fromkeys(map(cell, rows)) if any(c in values[m] for m in columns)]
    lines = []
    for strategy, ratio in cells:
        numbers = [values[column].get((strategy, ratio), {}) for column in columns]
        seeds = max(map(len, numbers))
        texts = [
            spread(list(n.values())) + (f", n = {len(n)}" if 0 < len(n) < seeds else "")
            for n in numbers
        ]
        lines.append([*label((strategy, ratio)), seeds, *texts])
    return markdown_table(["strategy", "ratio", "seeds", *columns], lines)


def comparisons(rows: Sequence[Row], tuning: Sequence[Row]) -> list[str]:
    """Probes beside random masks: of the same ratio, and each at the ratio that is best for it.

    Args:
        rows: whose probes are compared.
        tuning: rows that choose the best ratios.
    """
    values, best = by_cell(rows, "probe"), best_cells(tuning)
    lines: list[str] = []
    for title, pairs in (
        ("Beside random masks of the same ratio:", [(one, ("random", one[1])) for one in values]),
        (
            "Each at its own best ratio, chosen on the tuning seeds"
            + (" (these, so the best look better than they are):" if rows is tuning else ":"),
            [(one, best["random"]) for one in best.values() if "random" in best],
        ),
    ):
        lines += comparison_table(values, pairs, title)
    return lines


def best_cells(tuning: Sequence[Row]) -> dict[str, Cell]:
    """Of each strategy the cell whose mean probe is highest."""
    probe = by_cell(tuning, "probe")
    best: dict[str, Cell] = {}
    for one in sorted(probe, key=lambda one: np.mean(list(probe[one].values()))):
        best[one[0]] = one
    return best


def comparison_table(
    values: dict[Cell, dict[int, float]], pairs: Sequence[tuple[Cell, Cell]], title: str
) -> list[str]:
    """Differences of the probe by seed, for the pairs that have a seed in common."""
    pairs = [
        (one, other)
        for one, other in pairs
        if one[0] != "random" and set(values.get(one, {})) & set(values.get(other, {}))
    ]
    if not pairs:
        return []
    found = [compare(values[one], values[other]) for one, other in pairs]
    corrected = holm([comparison.p for comparison in found])
    lines = [
        [
            *label(one),
            f"{other[1]:g}",
            f"{comparison.mean:+.3f}",
            interval(comparison),
            "" if np.isnan(p) else f"{p:.3f}",
            len(comparison.differences),
        ]
        for (one, other), comparison, p in zip(pairs, found, corrected, strict=True)
    ]
    head = ["strategy", "ratio", "random's", "difference of the probe", "interval", "p, Holm", "n"]
    return ["", title, "", *markdown_table(head, lines)]


def search_section(rows: Sequence[Row]) -> list[str]:
    """The trials of the search, by data set: those that went on to all seeds first, best first."""
    lines: list[str] = []
    for data in dict.fromkeys(row["data"] for row in rows):
        trials: dict[str, list[Row]] = {}
        for row in of_split(rows, "tune", data):
            trials.setdefault(row["settings"], []).append(row)
        random = next(t for t in trials.values() if t[0]["strategy"] == "random")
        baseline = {row["seed"]: worth(row) for row in random}
        lines += [
            "",
            f"## search, {data}, tuning seeds",
            "",
            f"{len(trials) - 1} trials of `python -m benchmarks.study search`; those with fewer "
            "seeds were pruned. Beside random masks at a ratio of "
            f"{ratio_of(json.loads(random[0]['settings'])['masking'])} with the same seeds. The "
            "best of many looks better than it is. *Worth* is what the search maximises, the mean "
            "of the linear probe and of nearest neighbours.",
            "",
        ]

        def rank(trial: Sequence[Row]) -> tuple[int, float]:
            return len(trial), float(np.mean([worth(row) for row in trial]))

        cells = []
        for trial in sorted(trials.values(), key=rank, reverse=True):
            differences = [worth(row) - baseline[row["seed"]] for row in trial]
            cells.append([
                trial[0]["strategy"],
                len(trial),
                *(spread([float(row[name]) for row in trial]) for name in ("probe", "knn")),
                spread(differences) if trial is not random else "",
            ])  # fmt: skip
        lines += markdown_table(["trial", "seeds", "probe", "20-NN", "worth less random's"], cells)
    return lines


def label(one: Cell) -> tuple[str, str]:
    """A cell's strategy and ratio, for a table."""
    return one[0], "" if one[1] is None else f"{one[1]:g}"


def interval(comparison: Comparison) -> str:
    if len(comparison.differences) == 1:
        return "(one seed)"
    if np.isnan(comparison.low):
        least, most = min(comparison.differences), max(comparison.differences)
        return f"({least:+.3f} to {most:+.3f} by seed)"
    return f"{comparison.low:+.3f} to {comparison.high:+.3f}"


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> str:
    """Of values by seed: its mean, and its interval or range; nothing without a common seed."""
    if not set(values) & set(reference):
        return ""
    found = compare(values, reference)
    return f"{found.mean:+.3f} ({interval(found).strip('()')})"


def spread(numbers: Sequence[float]) -> str:
    if not numbers:
        return ""
    mean, least, most = np.mean(numbers), min(numbers), max(numbers)
    style = ".3f" if abs(mean) < 100 else ".3g"
    if least == most:
        return f"{mean:{style}}"
    return f"{mean:{style}} ({least:{style}} to {most:{style}})"
