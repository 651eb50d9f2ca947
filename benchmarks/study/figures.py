"""Figures of the study."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

from benchmarks.study.stats import Comparison


def probe_against_ratio(
    values: Mapping[tuple[str, float | None], Mapping[int, float]], path: Path
) -> None:
    """One curve per strategy, a dot per seed; a line across for what has no mask ratio."""
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    markers = itertools.cycle("osD^vP")
    styles = iter(cycler(linestyle=["-", "--"]) * cycler(color=[f"C{n}" for n in range(10)]))
    for strategy in dict.fromkeys(name for name, _ in values):
        points = sorted(
            (ratio, list(by_seed.values()))
            for (name, ratio), by_seed in values.items()
            if name == strategy and ratio is not None
        )
        if not points:
            level = np.mean(list(values[strategy, None].values()))
            axes.axhline(level, linestyle=":", color="grey")
            axes.annotate(strategy, (0.01, level), xycoords=("axes fraction", "data"), va="bottom")
            continue
        ratios = [ratio for ratio, _ in points]
        # The random masks are what all others are seen beside.
        style = dict(color="black", linewidth=2.5) if strategy == "random" else next(styles)
        (curve,) = axes.plot(
            ratios, [np.mean(v) for _, v in points], marker=next(markers), label=strategy, **style
        )
        for ratio, numbers in points:
            axes.scatter([ratio] * len(numbers), numbers, s=8, color=curve.get_color())
    axes.set(xlabel="share of patches masked and predicted", ylabel="linear probe, accuracy")
    if len(axes.lines) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def differences(values: Mapping[str, Sequence[float]], label: str, path: Path) -> None:
    """A line per strategy, from above as given: a dot per seed, and a bar at the mean."""
    figure, axes = plt.subplots(figsize=(7.5, 0.3 * len(values) + 1), layout="constrained")
    for place, numbers in enumerate(values.values()):
        axes.scatter(numbers, [-place] * len(numbers), s=14, color="C0", alpha=0.6)
        axes.scatter([np.mean(numbers)], [-place], marker="|", s=220, color="black")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks([-place for place in range(len(values))], list(values))
    axes.set(xlabel=label)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


PALE = {"C2": "#98d398", "C3": "#ec9494"}
FEW = 3  # seeds, below which their having one sign says nothing


def span(one: Comparison) -> tuple[float, float]:
    """The interval; where there is none, from the least to the largest seed."""
    if np.isnan(one.low):
        return min(one.differences), max(one.differences)
    return one.low, one.high


def colour(one: Comparison) -> str:
    """Green where the interval is above zero and red where it is below; paler where there is none
    but each seed is, of at least ``FEW``; else grey.
    """
    low, high = span(one)
    if low <= 0 <= high or len(one.differences) < FEW:
        return "0.4"
    strong = "C2" if low > 0 else "C3"
    return PALE[strong] if np.isnan(one.low) else strong


def forest(
    panels: Mapping[str, Mapping[str, Comparison]],
    lines: Sequence[str],
    hollow: Collection[tuple[str, str]],
    path: Path,
) -> None:
    """Differences to random masks, a panel per data set.

    Args:
        panels: by title and line; an interval is a thick bar, a ``span`` without one a thin line.
        lines: from above.
        hollow: titles and lines of the points that are not filled.
        path: of the picture.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 0.34 * len(lines) + 1.4), sharey=True, layout="constrained"
    )
    for panel, (words, found) in zip(axes, panels.items(), strict=True):
        for place, name in enumerate(lines):
            if name not in found:
                continue
            one = found[name]
            panel.plot(
                span(one), [-place] * 2, color=colour(one), solid_capstyle="butt",
                linewidth=1.5 if np.isnan(one.low) else 3,
            )  # fmt: skip
            panel.scatter(
                [one.mean], [-place], zorder=3, s=28, edgecolors=colour(one), linewidths=1.5,
                facecolors="white" if (words, name) in hollow else colour(one),
            )  # fmt: skip
        panel.axvline(0, color="black", linewidth=1)
        panel.set_title(words, fontsize="medium")
        panel.locator_params(axis="x", min_n_ticks=3)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(left=False)
    axes[0].set_yticks([-place for place in range(len(lines))], lines)
    figure.supxlabel("linear probe less that of random masks", fontsize="medium")
    figure.savefig(path, dpi=130)
    plt.close(figure)
