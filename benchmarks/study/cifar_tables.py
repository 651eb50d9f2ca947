"""The tables and the figure of docs/results/cifar.md, from the CSV files of the runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.markdown import markdown_table
from benchmarks.study.cifar_arms import CHOSEN, CPU, GPU, RATIOS, SHORT_CPU, arms, step_flops
from benchmarks.study.evidence import fill, mean, rows_of
from benchmarks.study.figures import differences
from benchmarks.study.stats import compare, holm
from benchmarks.study.store import Row
from benchmarks.study.tables import Cell, by_cell, cell, difference, interval, label

STOCK: Cell = ("random", 0.75)
OTHERS = {
    "knn": "20-NN", "finetune": "fine-tune", "probe_1_percent": "1 %", "probe_10_percent": "10 %",
    "probe_noise": "noise", "probe_blur": "blur", "probe_contrast": "contrast",
    "probe_jpeg": "JPEG", "probe_occluded": "occluded",
}  # fmt: skip


def write_cifar(results: Path) -> None:
    """Make the page's tables and its figure anew; where there is no page yet, nothing."""
    page = results / "cifar.md"
    if not page.exists():
        return
    fill(page, results, TABLES)
    probe = by_cell(report(results), "probe")
    if STOCK in probe:
        shown = {
            " at ".join(label(one)): compare(probe[one], probe[STOCK]).differences
            for one in ordered(probe)
            if one[0] != "oracle"  # so far below that the others could not be told apart
        }
        differences(
            shown, "linear probe less that of random masks at 0.75, equal FLOPs",
            results / "study_cifar_differences.png",
        )  # fmt: skip


def report(results: Path) -> list[Row]:
    return rows_of(results, "cifar", "report", GPU.data)


def ordered(values: Mapping[Cell, Mapping[int, float]]) -> list[Cell]:
    """The cells with a seed that random masks have too, the best first by the difference."""
    cells = [one for one in values if set(values[one]) & set(values[STOCK])]
    return sorted(cells, key=lambda one: -compare(values[one], values[STOCK]).mean)


def epochs_of(row: Row) -> int:
    epochs: int = json.loads(row["settings"])["recipe"]["epochs"]
    return epochs


def lengths(results: Path) -> list[str]:
    """The baselines, and random masks at 0.75 for half, all and twice the epochs."""
    rows = rows_of(results, "cifar_lengths", "report", GPU.data)
    rows += [row for row in report(results) if cell(row) == STOCK]
    metrics = {"probe": "probe", "knn": "20-NN", "finetune": "fine-tune", "probe_1_percent": "1 %"}
    values = {metric: by_cell(rows, metric) for metric in metrics}
    trained = {cell(row): epochs_of(row) for row in rows if json.loads(row["settings"])["masking"]}
    lines = []
    for one in sorted(values["probe"], key=lambda one: trained.get(one, 0)):
        numbers = [mean(values[metric].get(one)) for metric in metrics]
        lines.append([one[0], trained.get(one, ""), len(values["probe"][one]), *numbers])
    return markdown_table(["encoder", "epochs", "n", *metrics.values()], lines)


def tuning(results: Path) -> list[str]:
    """Probe by ratio at equal FLOPs, on tuning seeds."""
    rows = rows_of(results, "cifar_tuning", "tune", GPU.data)
    probe = by_cell(rows, "probe")
    seeds = sorted({len(values) for values in probe.values()})
    return [f"Means of {' or '.join(map(str, seeds))} seeds.", "", *by_ratio(probe, RATIOS)]


def recipes(results: Path) -> list[str]:
    """Learning rates and targets, on a tuning seed."""
    rows = rows_of(results, "cifar_recipe", "tune", GPU.data)
    return by_ratio(by_cell(rows, "probe"), (0.5, 0.75))


def by_ratio(probe: Mapping[Cell, dict[int, float]], ratios: Sequence[float]) -> list[str]:
    """A line a strategy, a column a mask ratio."""
    names = dict.fromkeys(name for name, _ in probe)
    cells = [[name, *(mean(probe.get((name, ratio))) for ratio in ratios)] for name in names]
    return markdown_table(["masks", *(f"{ratio:g}" for ratio in ratios)], cells)


def main_table(results: Path) -> list[str]:
    """Every strategy beside random masks at 0.75, at equal FLOPs."""
    rows = report(results)
    probe = by_cell(rows, "probe")
    epochs = {cell(row): epochs_of(row) for row in rows}
    cells = ordered(probe)
    references = [STOCK]
    if (best := ("random", CHOSEN["random"])) != STOCK:
        references.append(best)
    columns = [
        text for one in references for text in (f"less random {one[1]:g}", "95 %, or by seed", "p")
    ]
    lines = []
    compared = {one: beside(probe, cells, one) for one in references}
    for one in cells:
        texts = [text for reference in references for text in compared[reference][one]]
        lines.append([*label(one), epochs[one], len(probe[one]), mean(probe[one]), *texts])
    return markdown_table(["masks", "ratio", "epochs", "n", "probe", *columns], lines)


def beside(
    probe: Mapping[Cell, dict[int, float]], cells: Sequence[Cell], reference: Cell
) -> dict[Cell, list[str]]:
    """By cell the difference, its interval, or its range where seeds are too few for one, and its p
    by Holm over the cells.
    """
    found = {one: compare(probe[one], probe[reference]) for one in cells if one != reference}
    corrected = holm([comparison.p for comparison in found.values()])
    texts = {reference: ["", "", ""]}
    for (one, comparison), p in zip(found.items(), corrected, strict=True):
        shown = "" if np.isnan(p) else "<0.001" if p < 0.0005 else f"{p:.3f}"
        texts[one] = [f"{comparison.mean:+.3f}", interval(comparison), shown]
    return texts


PAIRS: tuple[tuple[Cell, Cell], ...] = (
    *((("adversarial", ratio), ("random", ratio)) for ratio in RATIOS),
    (("shuffled", 0.5), ("random", 0.5)),
    (("shuffled", 0.5), ("adversarial", 0.5)),
    (("predicted, learned", 0.25), ("predicted, random", 0.25)),
)


def same_price(results: Path) -> list[str]:
    """Pairs of one ratio and of nearly one price: they differ in what is masked or predicted."""
    probe = by_cell(report(results), "probe")
    lines = []
    for one, other in PAIRS:
        if one in probe and other in probe:
            found = compare(probe[one], probe[other])
            names = (" at ".join(label(cell)) for cell in (one, other))
            count = len(found.differences)
            lines.append([*names, count, f"{found.mean:+.3f}", interval(found)])
    head = ["masks", "less", "n", "difference of the probe", "95 %, or by seed"]
    return markdown_table(head, lines)


def other_measures(results: Path) -> list[str]:
    """Means of the other measures; in bold those whose difference to random masks' has an interval
    above 0.
    """
    rows = report(results)
    values = {metric: by_cell(rows, metric) for metric in OTHERS}
    lines = []
    for one in ordered(by_cell(rows, "probe")):
        texts = []
        for metric in OTHERS:
            found = compare(values[metric][one], values[metric][STOCK])
            text = mean(values[metric][one])
            texts.append(f"**{text}**" if found.low > 0 else text)
        lines.append([*label(one), *texts])
    return markdown_table(["masks", "ratio", *OTHERS.values()], lines)


def masks(results: Path) -> list[str]:
    """What the masks are like at the end of training, on test images."""
    rows = report(results)
    names = {
        "adversarial_gain": "gain", "position_entropy": "position entropy",
        "mask_distance": "distance", "score_entropy": "score entropy",
        "error_random_0.75": "error under random masks at 0.75",
    }  # fmt: skip
    values = {metric: by_cell(rows, metric) for metric in names}
    lines = []
    for one in ordered(by_cell(rows, "probe")):
        if not one[0].startswith("predicted"):  # their errors are of other tasks
            lines.append([*label(one), *(mean(values[metric].get(one)) for metric in names)])
    return markdown_table(["masks", "ratio", *names.values()], lines)


def small_lengths(results: Path) -> list[str]:
    """The baselines of the smaller recipe."""
    rows = rows_of(results, "cifar_cpu", "report", CPU.data)
    metrics = {"probe": "probe", "knn": "20-NN", "probe_1_percent": "1 %"}
    values = {metric: by_cell(rows, metric) for metric in metrics}
    lines = [
        [*label(one), len(values["probe"][one]), *(mean(values[m].get(one)) for m in metrics)]
        for one in (("untrained", None), ("pixels", None), STOCK)
        if one in values["probe"]
    ]
    return markdown_table(["encoder", "ratio", "n", *metrics.values()], lines)


def other_prices(results: Path) -> list[str]:
    """On a CPU: what costs more than random masks at 0.75, or as much time."""
    rows = [
        row
        for name in ("cifar_cpu", "cifar_time")
        for row in rows_of(results, name, "report", CPU.data)
        if cell(row)[1] is not None and "progress" not in row["strategy"]
    ]
    probes: dict[tuple[Cell, int], dict[int, float]] = {}
    for row in rows:
        by_seed = probes.setdefault((cell(row), epochs_of(row)), {})
        by_seed[int(row["seed"])] = float(row["probe"])
    stock = probes.get((STOCK, SHORT_CPU.epochs), {})
    steps = times_of_steps(results)
    lines = []
    for (one, epochs), probe in sorted(probes.items(), key=lambda item: item[0]):
        if not set(probe) & set(stock):
            continue
        share = epochs / SHORT_CPU.epochs
        flops = step_flops(arms(SHORT_CPU, one[1])[one[0]]) * share
        time = f"{steps[one] * share:.2f}" if one in steps else ""
        texts = []
        for other in (STOCK, ("random", one[1])):
            reference = probes.get((other, SHORT_CPU.epochs if other == STOCK else epochs), {})
            texts.append("" if one == other else difference(probe, reference))
        if one[1] == STOCK[1]:
            texts[1] = ""  # the same again
        lines.append([*label(one), epochs, f"{flops:.2f}", time, len(probe), mean(probe), *texts])
    head = ["masks", "ratio", "epochs", "FLOPs", "time", "n", "probe"]
    return markdown_table([*head, "less random 0.75's", "less random's, same ratio"], lines)


def times_of_steps(results: Path) -> dict[Cell, float]:
    """A step's time over that of random masks at 0.75, as it was measured."""
    with (results / "study_steps.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == CPU.data]
    return {cell(row): float(row["step_ratio"]) for row in rows}


TABLES: dict[str, Callable[[Path], Sequence[str]]] = {
    "lengths": lengths, "recipes": recipes, "tuning": tuning, "main": main_table,
    "same": same_price, "small": small_lengths, "prices": other_prices,
    "others": other_measures, "masks": masks,
}  # fmt: skip
