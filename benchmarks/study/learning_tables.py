"""The tables of docs/results/learning.md, from the CSV files of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.markdown import markdown_table
from benchmarks.study.cifar_arms import CPU, GPU
from benchmarks.study.cifar_tables import STOCK
from benchmarks.study.evidence import fill, mean, rows_of
from benchmarks.study.experiments import CHOSEN, PILOTED
from benchmarks.study.settings import DRAWN, RULED, RULED_LESS_TREND, USABLE
from benchmarks.study.store import Row
from benchmarks.study.tables import SPLITS, Cell, by_cell, cell, difference, label, spread

FIXED: tuple[Cell, ...] = tuple(("random", ratio) for ratio in (0.375, 0.5, 0.75))
PROGRESS: Cell = ("progress, inclusion", 0.75)
BY_RULER: Cell = (RULED_LESS_TREND, None)
# The learned masks that docs/choosing.md names for such images, at the ratio of the tuning seeds.
BEST_FIXED: dict[str, Cell] = {
    "shapes": ("adversarial", CHOSEN["shapes"]["adversarial"]),
    "digits": ("cooperative, unweighted", CHOSEN["digits"]["cooperative"]),
}
# How a pilot may choose: the column of its short trainings, and whether more is better.
MEASURES: dict[str, tuple[str, int]] = {
    "ruler": ("error_random_0.5", -1), "20-NN": ("knn", 1), "linear probe": ("probe", 1),
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
    """Progress, and the ratio by the ruler, beside random masks at 0.75, on report seeds."""
    rows = rows_of(results, "cifar_cpu", "report", CPU.data)
    return beside_random([row for row in rows if cell(row) in (STOCK, PROGRESS, BY_RULER)])


def beside_random(rows: Sequence[Row]) -> Sequence[str]:
    """The cells of these rows, the best first, beside the best random masks among them."""
    if not any(row["strategy"] == "random" for row in rows):
        return ["Not run yet."]
    columns = {
        "adversarial_gain": "gain", "foreground_lift": "foreground lift",
        "noise_lift": "noise lift",
    }  # fmt: skip
    probe, knn = by_cell(rows, "probe"), by_cell(rows, "knn")
    others = {column: by_cell(rows, column) for column in columns}
    others = {column: values for column, values in others.items() if values}
    random = {one: values for one, values in probe.items() if one[0] == "random"}
    best = max(random, key=lambda one: mean_of(random[one]))
    flops = {one: mean_of(values) for one, values in by_cell(rows, "flops_step").items()}
    lines = []
    for one in sorted(probe, key=lambda one: -mean_of(probe[one])):
        less = "" if one == best else difference(probe[one], probe[best])
        numbers = [spread(list(values.get(one, {}).values())) for values in others.values()]
        values = [spread(list(found[one].values())) for found in (probe, knn)]
        name, ratio = label(one)
        if one[1] is None:
            ratio = f"{mean(by_cell(rows, 'mask_ratio').get(one))} on average"
        price = f"{flops[one] / flops[best]:.2f}"
        lines.append([name, ratio, price, len(probe[one]), *values, less, *numbers])
    head = [
        "masks", "ratio", "FLOPs of a step", "seeds", "linear probe", "20-NN",
        "less the best random masks'", *(columns[column] for column in others),
    ]  # fmt: skip
    return markdown_table(head, lines)


def ruled(results: Path) -> Sequence[str]:
    """Ratios by the ruler: which they were, and the probe beside that of ratios that are drawn."""
    lines = []
    for data in USABLE:
        for split, experiment in (("tune", "learning"), ("report", "learning_report")):
            rows = rows_of(results, experiment, split, data)
            probe = by_cell(rows, "probe")
            most, share = by_cell(rows, "late_ratio"), by_cell(rows, "late_share")
            for name in (RULED, RULED_LESS_TREND, DRAWN):
                one: Cell = (name, None)
                if one not in probe:
                    continue
                late = [
                    f"{most[one][seed]:g} ({share[one][seed]:.2f})"
                    if seed in most.get(one, ())
                    else "?"
                    for seed in sorted(probe[one])
                ]
                less = "" if name == DRAWN else difference(probe[one], probe.get((DRAWN, None), {}))
                lines.append([
                    data, SPLITS[split], name, len(late), ", ".join(late),
                    spread(list(probe[one].values())), less,
                ])  # fmt: skip
    if not lines:
        return ["Not run yet."]
    head = ["images", "seeds", "masks", "n", "most frequent late ratio (its share), by seed"]
    return markdown_table([*head, "linear probe", "less drawn ratios'"], lines)


def ruler(results: Path) -> Sequence[str]:
    """How the ruler and the gain go with the probe, over the cells of each data set."""
    sources = [(data, ("grid", "others"), "tune", data) for data in USABLE]
    sources.append(("CIFAR-10", ("cifar",), "report", GPU.data))
    lines = []
    for words, experiments, split, data in sources:
        rows = [row for name in experiments for row in rows_of(results, name, split, data)]
        probe = {one: mean_of(values) for one, values in by_cell(rows, "probe").items()}
        if not probe:
            continue
        cells = [words, SPLITS[split], len(probe)]
        for column in ("error_random_0.5", "adversarial_gain"):
            other = {one: mean_of(values) for one, values in by_cell(rows, column).items()}
            both = sorted(set(probe) & set(other), key=str)
            rho = spearmanr([probe[one] for one in both], [other[one] for one in both]).statistic
            cells.append(f"{rho:+.2f}")
        lines.append(cells)
    if not lines:
        return ["Not run yet."]
    return markdown_table(
        ["images", "seeds", "settings", "ruler and probe", "gain and probe"], lines
    )


def reported(results: Path) -> Sequence[str]:
    """Of report seeds: what sets itself, beside random masks at their best ratio and beside the
    setting that docs/choosing.md names; of ratios that are drawn, the table ``ruled``.
    """
    lines = []
    for data in USABLE:
        rows = rows_of(results, "learning_report", "report", data)
        others = rows_of(results, "report", "report", data)
        found, known = by_cell(rows, "probe"), by_cell(others, "probe")
        own, flops = by_cell(rows, "flops_step"), by_cell(others, "flops_step")
        random: Cell = ("random", CHOSEN[data]["random"])
        for one in (one for one in found if one[0] != DRAWN):
            price = mean_of(own[one]) / mean_of(flops[random])
            texts = [difference(found[one], known[other]) for other in (random, BEST_FIXED[data])]
            values = list(found[one].values())
            lines.append([data, *label(one), f"{price:.2f}", len(values), spread(values), *texts])
    if not lines:
        return ["Not run yet."]
    head = ["images", "masks", "ratio", "FLOPs", "n", "linear probe", "less random masks'"]
    return markdown_table([*head, "less the best fixed setting's"], lines)


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
    "rewards-cifar": on_cifar, "reported": reported, "ruled": ruled, "ruler": ruler,
    "pilots": pilots,
}  # fmt: skip
