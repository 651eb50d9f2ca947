"""The table and the chart of docs/evidence.md: every strategy beside random masks, by data set; and
the table of docs/prediction_ratio.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.markdown import markdown_table
from benchmarks.study.cifar_arms import CHOSEN as CIFAR_CHOSEN
from benchmarks.study.cifar_arms import CPU, GPU, SHARE
from benchmarks.study.cifar_tables import STOCK
from benchmarks.study.evidence import best_free, fill, mean, price, rows_of
from benchmarks.study.experiments import CHOSEN, PREDICTED, SEEN
from benchmarks.study.figures import forest
from benchmarks.study.learning_tables import BY_RULER, PROGRESS
from benchmarks.study.settings import USABLE
from benchmarks.study.stats import Comparison, compare
from benchmarks.study.tables import Cell, by_cell, interval

CHART = "images/evidence.png"
EPOCHS = "equal epochs"
LEARNING = ("rewarded by progress", "random, ratio by the ruler")  # docs/results/learning.md


def write_summary(docs: Path, results: Path) -> None:
    """Make the tables of evidence.md, price.md and prediction_ratio.md, and the chart, anew; errors
    as for ``fill``.
    """
    fill(docs / "evidence.md", results, {"summary": summary})
    fill(docs / "price.md", results, {"price": price})
    fill(docs / "prediction_ratio.md", results, {"sets": sets})
    chart(results, docs / CHART)


@dataclass(frozen=True)
class Apart:
    """A line whose runs are of another experiment than its column's, at equal epochs.

    Attributes:
        experiment, data: where the rows are.
        strategy: its cell.
        beside: the experiment of the random masks that it is compared with, and their cell.
    """

    experiment: str
    data: str
    strategy: Cell
    beside: tuple[str, Cell]


@dataclass(frozen=True)
class Column:
    """A data set: what its strategies are, and what they are compared with.

    Attributes:
        words: above the column.
        price: what is equal among its strategies.
        experiment, data: where the rows are.
        strategies: what each line's strategy is called there.
        reference: random masks at their own best ratio.
        apart: lines of other experiments.
    """

    words: str
    price: str
    experiment: str
    data: str
    strategies: Mapping[str, Cell]
    reference: Cell
    apart: Mapping[str, Apart]


def columns(results: Path) -> tuple[Column, ...]:
    def chosen(data: str, names: Mapping[str, str]) -> dict[str, Cell]:
        return {words: (name, CHOSEN[data][name]) for words, name in names.items()}

    free = {data: best_free(results, data) or "block" for data in ("shapes", "digits")}

    def apart(data: str) -> dict[str, Apart]:
        random = "report", ("random", CHOSEN[data]["random"])
        return {
            SHARE: Apart("half_random", data, (SHARE, 0.75), random),
            LEARNING[0]: Apart("learning_report", data, ("progress, inclusion", 0.5), random),
            LEARNING[1]: Apart("learning_report", data, BY_RULER, random),
        }

    small = {
        words: Apart("cifar_cpu", CPU.data, one, ("cifar_cpu", STOCK))
        for words, one in zip(LEARNING, (PROGRESS, BY_RULER), strict=True)
    }
    cifar = {
        SHARE: (SHARE, 0.75),
        "adversarial": ("adversarial", CIFAR_CHOSEN["adversarial"]),
        "adversarial at 0.75": ("adversarial", 0.75),
        "cooperative": ("cooperative", 0.75),
        "curriculum": ("curriculum", 0.75),
        "hard patches": ("hard patches", CIFAR_CHOSEN["hard patches"]),
        "best free masks": ("color noise, green", CIFAR_CHOSEN["color noise, green"]),
        "seen 0.25, predicted 0.25, learned": ("predicted, learned", 0.25),
    }  # not the oracle, which has two epochs there
    learned = {name: name for name in ("adversarial", "cooperative", "curriculum", "oracle")}
    shapes = chosen("shapes", {**learned, "hard patches": "hard patches"})
    shapes["best free masks"] = (free["shapes"], CHOSEN["shapes"][free["shapes"]])
    digits = chosen("digits", learned)
    digits["cooperative"] = ("cooperative, unweighted", CHOSEN["digits"]["cooperative"])
    digits["best free masks"] = (free["digits"], CHOSEN["digits"][free["digits"]])
    return (
        Column(
            "CIFAR-10", "equal FLOPs", "cifar", GPU.data, cifar,
            ("random", CIFAR_CHOSEN["random"]), small,
        ),
        Column(
            "coloured shapes on texture", "equal FLOPs of the encoder", "flops", "shapes", shapes,
            ("random", CHOSEN["shapes"]["random"]), apart("shapes"),
        ),
        Column(
            "digits on black", EPOCHS, "report", "digits", digits,
            ("random", CHOSEN["digits"]["random"]), apart("digits"),
        ),
    )  # fmt: skip


LINES = (
    SHARE, "adversarial", "adversarial at 0.75", "cooperative", "curriculum", "hard patches",
    "best free masks", "seen 0.25, predicted 0.25, learned", *LEARNING, "oracle",
)  # fmt: skip


def found(results: Path, column: Column) -> dict[str, tuple[Cell, Comparison]]:
    """By line of the table: which cell it is, and its linear probe less random masks'."""
    probe = by_cell(rows_of(results, column.experiment, "report", column.data), "probe")
    lines = {
        words: (one, compare(probe[one], probe[column.reference]))
        for words, one in column.strategies.items()
        if one in probe
    }
    for words, line in column.apart.items():
        experiment, other = line.beside
        own, theirs = (
            by_cell(rows_of(results, name, "report", line.data), "probe")
            for name in (line.experiment, experiment)
        )
        ours, reference = own.get(line.strategy, {}), theirs.get(other, {})
        if set(ours) & set(reference):
            lines[words] = line.strategy, compare(ours, reference)
    return lines


def summary(results: Path) -> list[str]:
    """The table: a line per strategy, a column per data set."""
    by_column = [found(results, column) for column in columns(results)]
    lines = []
    for words in LINES:
        texts = []
        for column, cells in zip(columns(results), by_column, strict=True):
            if words not in cells:
                texts.append("-")
                continue
            (name, ratio), difference = cells[words]
            text = f"{difference.mean:+.3f} ({interval(difference).strip('()')})"
            text += "" if ratio is None else f", ratio {ratio:g}"
            text += f", n = {len(difference.differences)}"
            kind = name.removeprefix(f"{words}, ")
            named = words == "best free masks" or kind != name
            if words in column.apart and column.apart[words].data != column.data:
                named, kind = True, "smaller recipe"
            texts.append(f"{text} ({kind})" if named else text)
        lines.append([words, *texts])
    return markdown_table(["masks", *(column.words for column in columns(results))], lines)


def sets(results: Path) -> list[str]:
    """Linear probe by what is seen, what is predicted, and how that is chosen; tuning seeds."""
    kinds = ("random", "adversarial", "cooperative")
    heads = [f"{data}, {kind}" for data in USABLE for kind in kinds]
    probes = {
        data: by_cell(rows_of(results, "seen_predicted", "tune", data), "probe") for data in USABLE
    }
    stock = [mean(probes[data].get(STOCK)) for data in USABLE]
    lines = [["0.25", "0.75 (stock)", *(text for one in stock for text in (one, "", ""))]]
    for seen in SEEN:
        for predicted in PREDICTED:
            cells = [(f"{kind}, seen {seen:g}", predicted) for kind in kinds]
            texts = [mean(probes[data].get(one)) for data in USABLE for one in cells]
            lines.append([f"{seen:g}", f"{predicted:g}", *texts])
    seeds = [f"{data} {max(map(len, probes[data].values()), default=0)}" for data in USABLE]
    table = markdown_table(["seen", "predicted", *heads], lines)
    return [*table, "", f"Seeds: {', '.join(seeds)}."]


def chart(results: Path, path: Path) -> None:
    """The same as a picture, but for the oracle, which is no strategy for a training; hollow where
    the price is not the panel's.
    """
    panels: dict[str, dict[str, Comparison]] = {}
    hollow: set[tuple[str, str]] = set()
    for column in columns(results):
        title = f"{column.words}\n{column.price}"
        panels[title] = {words: one for words, (_, one) in found(results, column).items()}
        if column.price != EPOCHS:
            hollow |= {(title, words) for words in column.apart}
    forest(panels, [words for words in LINES if words != "oracle"], hollow, path)
