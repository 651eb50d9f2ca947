"""Figures of the study."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
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


def forest(
    panels: Mapping[str, Mapping[str, Comparison]], lines: Sequence[str], path: Path
) -> None:
    """Differences to random masks with their intervals, a panel per data set; where seeds are too
    few for an interval, thin lines from the least to the largest.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 0.34 * len(lines) + 1.2), sharey=True, layout="constrained"
    )
    for panel, (words, found) in zip(axes, panels.items(), strict=True):
        for place, name in enumerate(lines):
            if name not in found:
                continue
            one = found[name]
            enough = not np.isnan(one.low)
            low, high = (
                (one.low, one.high) if enough else (min(one.differences), max(one.differences))
            )
            colour = "C2" if enough and low > 0 else "C3" if enough and high < 0 else "0.4"
            panel.plot(
                [low, high], [-place] * 2, color=colour, linewidth=3 if enough else 1,
                solid_capstyle="butt",
            )  # fmt: skip
            panel.scatter([one.mean], [-place], color=colour, zorder=3, s=28)
        panel.axvline(0, color="black", linewidth=1)
        panel.set(title=words)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(left=False)
    axes[0].set_yticks([-place for place in range(len(lines))], lines)
    figure.supxlabel("linear probe less that of random masks", fontsize="medium")
    figure.savefig(path, dpi=130)
    plt.close(figure)
