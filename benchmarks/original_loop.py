"""The original loop to the letter, with every estimator, and with tau held still.

    python -m benchmarks.original_loop

A tiny masked autoencoder learns with its masks for 1,000 steps: scores that are not standardised,
a threshold made of them, one backward, one optimizer. The specification's own threshold with every
estimator, each other one with some. Writes docs/results/original_loop.csv and a table made from it.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.estimators import Gumbel, Inclusion, StraightThrough
from amn_masking.estimators.base import Estimator, straight_through
from amn_masking.meters import adversarial_gain
from amn_masking.patches import image_means, patchify
from amn_masking.thresholds import THRESHOLDS, Selection
from benchmarks.markdown import markdown_table, write_results
from benchmarks.tiny_mae import PATCH, TinyMAE, pictures

EDGE = 2e-6  # of 0 or 1: a score so near has next to no gradient


class Ended(NamedTuple):
    """How a training ended."""

    ratio: float  # of the last 50 masks
    at_zero: float  # share of the network's scores within EDGE of 0
    at_one: float  # and of 1
    masked_score: float  # mean relative score of the masked patches
    visible_score: float  # and of the others
    # Error under the masks over that under random ones of the same counts, mean over every tenth
    # step of the second half: where the autoencoder learns what is masked, masks may lag behind.
    gain: float


class Unchecked(AdversarialMasking):
    """Takes what is refused, to measure why it is."""

    def check(self) -> None:
        pass


def train(
    steps: int = 1000,
    seed: int = 0,
    batch: int = 32,
    strategy: type[AdversarialMasking] = AdversarialMasking,
    **options: object,
) -> Ended:
    """Train a tiny masked autoencoder together with its masks, of the strategy's options."""
    torch.manual_seed(seed)
    draw, apart = (torch.Generator().manual_seed(seed + 1000 * n) for n in (1, 2))
    model = TinyMAE()
    masking = strategy(patch_size=PATCH, network=dict(channels=16, downsample=1), **options)
    optimizer = torch.optim.Adam([*model.parameters(), *masking.parameters()], lr=1e-3)
    criterion = CombinedAdversarialLoss()
    ratios, gains = [], []
    for step in range(steps):
        images = pictures(batch, draw)
        patch_mask = masking(images)
        loss = criterion(model(images, patch_mask), patchify(images, (PATCH, PATCH)), patch_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ratios.append(patch_mask.mask.mean().item())
        if step % 10 == 0 and 2 * step >= steps:
            with torch.no_grad():
                error = partial(model.error, images)
                gains.append(adversarial_gain(error, patch_mask, apart).item())
    with torch.no_grad():
        patch_mask = masking(pictures(128, draw))
    learned, mask = patch_mask.learned, patch_mask.mask
    scores = learned.relative_scores

    def mean(values: Tensor) -> float:
        return values.float().mean().item()

    return Ended(
        ratio=sum(ratios[-50:]) / len(ratios[-50:]),
        at_zero=mean(learned.patch_scores < EDGE),
        at_one=mean(learned.patch_scores > 1 - EDGE),
        masked_score=mean(image_means(scores, mask)),
        visible_score=mean(image_means(scores, 1 - mask)),
        gain=sum(gains) / len(gains),
    )


def loop(threshold: str, strength: float) -> dict[str, object]:
    """The strategy's options for the loop with a threshold of this type, but for its estimator."""
    options: dict[str, object] = dict(type=threshold)
    if threshold == "difficulty":
        options["target_gain"] = 1.1 if strength > 0 else 0.9
    return dict(
        mask_ratio=0.5 if THRESHOLDS[threshold].takes_ratio else None,
        random_share=0.25 if threshold == "difficulty" else 0.0,
        strength=strength,
        threshold=options,
        standardise=False,
    )


class HeldStraightThrough(StraightThrough):
    """What collapses: tau without a gradient, so that all logits of an image move together."""

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        soft = torch.sigmoid((logits - selection.tau.detach()) / self.temperature)
        return straight_through(selection.patch_mask.mask, soft)


class HeldGumbel(Gumbel, HeldStraightThrough):
    """The same at the noisy logits."""


class HeldInclusion(Inclusion):
    """The same of inclusion's chances, for free counts."""

    def relax(
        self, logits: Tensor, priorities: Tensor, selection: Selection
    ) -> tuple[Tensor, Tensor | None]:
        chances = torch.sigmoid(logits - selection.tau.detach())
        return straight_through(selection.patch_mask.mask, chances), chances.detach()


HELD: dict[str, Estimator] = {
    "straight_through": HeldStraightThrough(),
    "straight_through, no noise": HeldStraightThrough(noise=0),
    "gumbel": HeldGumbel(),
    "inclusion": HeldInclusion(),
}
ESTIMATORS = {"straight_through, no noise": dict(type="straight_through", noise=0)} | {
    name: dict(type=name)
    for name in ("straight_through", "gumbel", "inclusion", "score_function", "ranking")
}
ARMS = [("mean", name, "moves") for name in ESTIMATORS]
ARMS += [("mean", name, "held still") for name in HELD]
ARMS += [
    (threshold, "straight_through", tau)
    for threshold in ("quantile", "constant", "tracking", "difficulty")
    for tau in ("moves", "held still")
]
ARMS += [("quantile", "inclusion", "moves")]
# With the mean it is refused for what it does there, with `difficulty` for another reason.
ARMS += [(threshold, "score_function", "moves") for threshold in ("constant", "tracking")]
# At -1 it ends as what holds tau still does with this threshold, though it has no tau.
ARMS += [("difficulty", "ranking", "moves")]
# Those of docs/estimators.md.
PAGE = [arm for arm in ARMS if arm[0] == "mean" and arm[1] in ("straight_through", "inclusion")]
PAGE += [("mean", "score_function", "moves")]
PAGE += [arm for arm in ARMS if arm[0] == "quantile"]


def run(
    threshold: str, name: str, tau: str, strength: float, seed: int, steps: int
) -> dict[str, object]:
    """One row."""
    torch.set_num_threads(1)
    found = train(
        steps,
        seed,
        strategy=Unchecked,
        estimator=(ESTIMATORS if tau == "moves" else HELD)[name],
        **loop(threshold, strength),
    )
    return (
        dict(
            threshold=threshold, estimator=name, tau=tau, strength=strength, seed=seed, steps=steps
        )
        | {key: f"{value:.4g}" for key, value in found._asdict().items()}
        | dict(torch=torch.__version__.split("+")[0], machine=f"CPU, {platform.machine()}")
    )


def measure(seeds: int, steps: int, jobs: int) -> list[dict[str, object]]:
    """The rows of all arms, both signs and so many seeds, which take the better part of an hour: a
    line each as they are done.
    """
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = [
            pool.submit(run, *arm, strength, seed, steps)
            for strength, arm, seed in product((1.0, -1.0), ARMS, range(seeds))
        ]
        rows = []
        for row in waiting:
            rows.append(row.result())
            named = (f"{key} {rows[-1][key]}" for key in ("strength", "threshold", "tau", "seed"))
            print(f"{len(rows)}/{len(waiting)}  {rows[-1]['estimator']}:", *named, flush=True)
        return rows


def table(rows: list[dict[str, str]], arms: Sequence[tuple[str, str, str]] = ARMS) -> str:
    """Markdown: mean and range over the seeds."""
    head = ["strength", "threshold", "estimator", "mask ratio", "scores at 0", "scores at 1"]
    head += ["score of the masked", "error over random masks"]
    lines = []
    for strength, (threshold, name, tau) in product(("1.0", "-1.0"), arms):
        arm = (strength, threshold, name, tau)
        of_arm = [
            row
            for row in rows
            if (row["strength"], row["threshold"], row["estimator"], row["tau"]) == arm
        ]
        cells = []
        for column in ("ratio", "at_zero", "at_one", "masked_score", "gain"):
            values = [float(row[column]) for row in of_arm]
            cells.append(f"{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        kind, comma, rest = name.partition(",")
        lines.append([
            f"{float(strength):+.0f}",
            f"`{threshold}`",
            f"`{kind}`{comma}{rest}{', tau held still' if tau == 'held still' else ''}",
            *cells,
        ])  # fmt: skip
    first = rows[0]
    return "\n".join([
        *markdown_table(head, lines),
        "",
        f"Mean and range over n = {len({row['seed'] for row in rows})} seeds. A tiny masked "
        "autoencoder that learns with its masks (`benchmarks/tiny_mae.py`), "
        "`standardise=False`, Adam at 1e-3, batches of 32, "
        f"{first['steps']} steps; at 0 or 1: within 2e-6. The ratio's range is 0.05 to 0.95. The "
        "error is the mean over every tenth step of the second half. So long a training is not "
        f"the same on every processor. torch {first['torch']}, {first['machine']}. Again by "
        "`python -m benchmarks.original_loop`.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    if args.steps < 20:
        parser.error(f"--steps expected 20 or more, for a tenth one in each half, got {args.steps}")
    rows = measure(args.seeds, args.steps, args.jobs)
    write_results(args.out / "original_loop.csv", "The original loop", rows, table)


if __name__ == "__main__":
    main()
