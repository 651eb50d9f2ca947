"""Bias and variance of every estimator against the exact gradient, by enumeration.

    python -m benchmarks.estimator_bias

Writes docs/results/estimators.csv, a table (estimators.md) and a figure (estimators.png) made from
it. 8 patches of which 4 are masked, all 70 masks enumerated; rewards are random and quadratic, with
interactions between patches. All estimators draw their masks from the same distribution.
"""

from __future__ import annotations

import argparse
import csv
import platform
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from amn_masking.estimators import (
    Estimator,
    Gumbel,
    Inclusion,
    Ranking,
    ScoreFunction,
    StraightThrough,
)
from amn_masking.learned import LearnedMask
from amn_masking.thresholds import Quantile
from benchmarks.enumeration import QuadraticReward, plackett_luce_gradient, sampled_gradients
from benchmarks.markdown import markdown_table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LENGTH, MASKED = 8, 4
# Standard deviation of one interaction, that of a patch's own difficulty being 1. Three other
# patches are masked, so at 1 they decide more than the patch itself.
INTERACTIONS = (0.0, 0.3, 1.0)


class BatchMean(Inclusion):
    """`inclusion` with the mean of the batch, all of one reward, as its baseline."""

    def baseline(self, reward: Tensor, learned: LearnedMask) -> Tensor:
        return super().baseline(reward, learned).mean()


ESTIMATORS: dict[str, Estimator] = {
    "score_function": ScoreFunction(),
    "inclusion": Inclusion(),
    "inclusion, expected error known": BatchMean(),
    "gumbel, T=1": Gumbel(1.0),
    "gumbel, T=0.3": Gumbel(0.3),
    "straight_through, T=1": StraightThrough(1.0),
    "straight_through, T=0.3": StraightThrough(0.3),
    "ranking": Ranking(),
}


def measure(samples: Tensor, exact: Tensor) -> dict[str, float]:
    """What the estimates ``(n, L)`` are worth as estimates of ``exact`` ``(L,)``."""
    mean = samples.mean(0)
    variance = (samples - mean).square().sum(1).mean()
    return {
        # Of the mean estimate and the exact gradient: 1 is the right direction.
        "cosine": float(torch.cosine_similarity(mean, exact, dim=0)),
        # |mean - exact| / |exact|, as it is and with the best positive factor on the mean (an
        # optimizer such as Adam takes no notice of a factor).
        "bias": float((mean - exact).norm() / exact.norm()),
        "bias_rescaled": float((rescaled(mean, exact) - exact).norm() / exact.norm()),
        # Of one image's estimate, summed over the patches.
        "variance": float(variance),
        # In units of the squared length of the mean estimate: about how many images it takes for
        # the signal to equal the noise.
        "relative_variance": float(variance / mean.square().sum()),
        # Standard error of the bias.
        "bias_se": float((variance / len(samples)).sqrt() / exact.norm()),
    }


def rescaled(mean: Tensor, exact: Tensor) -> Tensor:
    """The mean times the factor >= 0 that brings it nearest to ``exact``."""
    return mean * ((mean @ exact) / (mean @ mean)).clamp_min(0)


def run(rewards: int, samples: int) -> list[dict[str, object]]:
    """One row per reward and estimator."""
    rows: list[dict[str, object]] = []
    setting = dict(
        patches=LENGTH,
        masked=MASKED,
        samples=samples,
        torch=torch.__version__.split("+")[0],
        python=platform.python_version(),
        machine=f"CPU, {platform.machine()}, float64",
    )
    for interaction, seed in product(INTERACTIONS, range(rewards)):
        reward = QuadraticReward(LENGTH, seed, interaction)
        exact = plackett_luce_gradient(reward, MASKED)
        for name, estimator in ESTIMATORS.items():
            generator = torch.Generator().manual_seed(seed)
            ratio = MASKED / LENGTH
            got = sampled_gradients(estimator, Quantile(), ratio, reward, samples, generator)
            numbers = {key: f"{value:.5g}" for key, value in measure(got, exact).items()}
            rows.append(
                {"estimator": name, "interaction": interaction, "reward": seed} | numbers | setting
            )
    return rows


def pick(rows: list[dict[str, str]], name: str, interaction: float, key: str) -> np.ndarray:
    """The values of one column for an estimator and a strength of interaction."""
    return np.array(
        [
            float(row[key])
            for row in rows
            if row["estimator"] == name and float(row["interaction"]) == interaction
        ]
    )


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: median and range over the rewards."""
    count, first = len({row["reward"] for row in rows}), rows[0]
    heads = ["estimator"]
    heads += [f"cosine, interaction {strength:g}" for strength in INTERACTIONS]
    heads += ["bias, rescaled, interaction 1", "relative variance, interaction 1"]
    lines = []
    for name in ESTIMATORS:
        cells = [pick(rows, name, strength, "cosine") for strength in INTERACTIONS]
        cells += [pick(rows, name, 1.0, key) for key in ("bias_rescaled", "relative_variance")]
        texts = [f"{np.median(v):.2f} ({v.min():.2f} to {v.max():.2f})" for v in cells]
        kind, comma, rest = name.partition(",")
        lines.append([f"`{kind}`{comma}{rest}", *texts])
    return "\n".join([
        *markdown_table(heads, lines),
        "",
        f"Median and range over n = {count} random rewards, {first['samples']} samples each; "
        f"{first['patches']} patches, {first['masked']} masked; torch {first['torch']}, "
        f"{first['machine']}. Again by `python -m benchmarks.estimator_bias`.",
        "",
    ])  # fmt: skip


def figure(rows: list[dict[str, str]], path: Path) -> None:
    """Bias and variance, a dot per reward."""
    names = list(reversed(ESTIMATORS))
    panels = (
        ("bias_rescaled", "bias, best rescaled: |c mean - exact| / |exact|", "linear"),
        ("relative_variance", "variance of one image's estimate / |mean estimate|²", "log"),
    )
    colours = plt.get_cmap("viridis")([0.0, 0.45, 0.8])
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for ax, (key, label, scale) in zip(axes, panels, strict=True):
        for height, name in enumerate(names):
            for shift, interaction, colour in zip(
                (0.25, 0, -0.25), INTERACTIONS, colours, strict=True
            ):
                values, at = pick(rows, name, interaction, key), height + shift
                ax.scatter(values, np.full(len(values), at), s=12, color=colour, alpha=0.5, lw=0)
                ax.plot([np.median(values)] * 2, [at - 0.1, at + 0.1], color=colour, lw=2.5)
        ax.set_xscale(scale)
        ax.set_xlabel(label)
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlim(left=-0.02)
    axes[0].set_yticks(range(len(names)), names)
    marks = [plt.Line2D([], [], marker="o", ls="", color=colour) for colour in colours]
    labels = [f"interaction {strength:g}" for strength in INTERACTIONS]
    fig.legend(marks, labels, loc="outside upper center", ncols=3, frameon=False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--rewards", type=int, default=20)
    parser.add_argument("--samples", type=int, default=200_000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "estimators.csv"
    rows = run(args.rewards, args.samples)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    title = "# Estimators against the exact gradient\n\n"
    (args.out / "estimators.md").write_text(title + table(written))
    figure(written, args.out / "estimators.png")
    print(table(written))


if __name__ == "__main__":
    main()
