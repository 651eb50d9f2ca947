"""Estimators on a trained autoencoder: direction against a reference, and variance.

    python -m benchmarks.estimator_trained

Writes docs/results/estimators_trained.csv and a table made from it. A tiny masked autoencoder, 64
patches, is trained with random masks; then the gradient of its error to random logits is estimated
for one batch of 32 images, of which each has a difficulty of its own. The reference is the mean of
the score function, with each image's own expected error as the baseline, over other masks.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amn_masking import RandomMasking
from amn_masking.estimators import Estimator, Gumbel, Inclusion, ScoreFunction, StraightThrough
from amn_masking.learned import LearnedMask
from amn_masking.patches import image_means, masked_mean
from amn_masking.rewards import patch_variance
from amn_masking.thresholds import Candidates, Quantile, Selection
from benchmarks.markdown import markdown_table, write_results
from benchmarks.tiny_mae import PATCH, TinyMAE, pictures

SIDE, GRID, LENGTH, BATCH = 32, (8, 8), 64, 32
COPIES = 4


class Known(Estimator):
    """An estimator with a baseline that is known."""

    def __init__(self, baseline: Tensor) -> None:
        super().__init__()
        self.known = baseline

    def baseline(self, reward: Tensor, learned: LearnedMask) -> Tensor:
        return self.known


class KnownScoreFunction(Known, ScoreFunction):
    """A score function with it."""


class KnownInclusion(Known, Inclusion):
    """`inclusion` with it."""


class OthersMean(ScoreFunction):
    """A score function with the mean of the other images as the baseline."""

    compares_images = False


def trained(seed: int, ratio: float, steps: int) -> TinyMAE:
    """A tiny masked autoencoder after some steps of random masks."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, masking = TinyMAE(SIDE), RandomMasking(ratio, PATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        images = pictures(BATCH, generator, SIDE)
        patch_mask = masking(images, generator)
        optimizer.zero_grad()
        masked_mean(model.error(images, patch_mask), patch_mask.mask).backward()
        optimizer.step()
    return model


class Batch:
    """One batch of images with random logits, and a frozen autoencoder.

    With ``copies`` > 1 each image, with its logits, stands that many times in a row.
    """

    def __init__(self, model: TinyMAE, seed: int, ratio: float, copies: int = 1) -> None:
        self.model, self.ratio = model, ratio
        self.generator = torch.Generator().manual_seed(seed + 100)
        images = pictures(BATCH, self.generator, SIDE)
        self.images = images.repeat_interleave(copies, 0)
        logits = torch.randn(BATCH, LENGTH, generator=self.generator)
        logits = torch.nn.functional.layer_norm(logits, (LENGTH,))
        self.logits = logits.repeat_interleave(copies, 0)
        self.variance = image_means(patch_variance(self.images, GRID), None)

    def draw(self) -> tuple[Tensor, Selection, Tensor]:
        """Priorities, a mask and the errors under it; one distribution for all estimators."""
        priorities = ScoreFunction().priorities(self.logits, False, self.generator)
        selection = Quantile()(
            Candidates(priorities, GRID, mask_ratio=self.ratio, generator=self.generator)
        )
        with torch.no_grad():
            return priorities, selection, self.model.error(self.images, selection.patch_mask)

    def gradient(
        self, estimator: Estimator, priorities: Tensor, selection: Selection, error: Tensor
    ) -> Tensor:
        """``(B, L)`` an estimate of the gradient of each image's expected masked error."""
        logits = self.logits.clone().requires_grad_()
        surrogate, chances = estimator.relax(logits, priorities, selection)
        scores = logits.detach().sigmoid()
        learned = LearnedMask(
            chosen=selection.patch_mask,
            logits=logits,
            surrogate=surrogate,
            patch_scores=scores,
            score_map=scores.reshape(-1, 1, *GRID),
            threshold=scores[:, 0],
            estimate=estimator.objective,
            chances=chances,
            variance=self.variance if estimator.compares_images else None,
        )
        return torch.autograd.grad(learned.objective(error), logits)[0] * len(logits)


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def measure(seed: int, ratio: float, steps: int, masks: int) -> list[dict[str, object]]:
    """One row per estimator."""
    model = trained(seed, ratio, steps)
    batch, copied = Batch(model, seed, ratio), Batch(model, seed, ratio, COPIES)
    rewards, weighted = [], []
    for _ in range(100):
        priorities, selection, error = batch.draw()
        mask = selection.patch_mask.mask
        _, chances = Inclusion().relax(batch.logits, priorities, selection)
        rewards.append(image_means(error, mask))
        weighted.append(image_means(error, mask / chances.clamp_min(Inclusion().floor)))
    ideal = KnownScoreFunction(torch.stack(rewards).mean(0))
    halves = torch.zeros(2, BATCH, LENGTH)
    for number in range(masks):
        halves[number % 2] += batch.gradient(ideal, *batch.draw()) / (masks // 2)
    estimators: dict[str, Estimator] = {
        "straight_through": StraightThrough(),
        "gumbel": Gumbel(),
        "inclusion": Inclusion(),
        "inclusion, expected error known": KnownInclusion(torch.stack(weighted).mean(0)),
        "score_function": ScoreFunction(),
        "score_function, mean of the others": OthersMean(),
        "score_function, expected error known": ideal,
    }
    several = f"score_function, {COPIES} masks per image"
    found: dict[str, list[Tensor]] = {name: [] for name in (*estimators, several)}
    for _ in range(masks // 4):
        drawn = batch.draw()
        for name, estimator in estimators.items():
            found[name].append(batch.gradient(estimator, *drawn))
        # Of each image the first copy's estimate: one mask, as for the others.
        found[several].append(copied.gradient(ScoreFunction(COPIES), *copied.draw())[::COPIES])
    rows: list[dict[str, object]] = []
    for name, samples in found.items():
        stacked = torch.stack(samples).double()
        mean = stacked.mean(0)
        variance = (stacked - mean).square().sum() / (len(stacked) - 1)
        signal = mean.square().sum() - variance / len(stacked)  # of the mean estimate, unbiased
        numbers = dict(
            cosine=cosine(mean, halves.mean(0).double()),
            halves=cosine(*halves),
            variance=float(variance),
            relative_variance=float(variance / signal),
        )
        rows.append(
            dict(estimator=name, seed=seed)
            | {key: f"{value:.5g}" for key, value in numbers.items()}
            | dict(
                masks=masks,
                mask_ratio=ratio,
                steps=steps,
                torch=torch.__version__.split("+")[0],
                machine=f"CPU, {platform.machine()}",
            )
        )
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: mean and range over the seeds."""
    head = ["estimator", "cosine with the reference"]
    head += ["variance of a batch's gradient / squared length of its mean"]
    lines = []
    for name in dict.fromkeys(row["estimator"] for row in rows):
        cells = []
        for key, digits in (("cosine", 2), ("relative_variance", 2)):
            values = np.array([float(row[key]) for row in rows if row["estimator"] == name])
            digits = 0 if values.max() > 50 else digits
            cells.append(
                f"{values.mean():.{digits}f} ({values.min():.{digits}f} to "
                f"{values.max():.{digits}f})"
            )
        kind, comma, rest = name.partition(",")
        lines.append([f"`{kind}`{comma}{rest}", *cells])
    first = rows[0]
    halves = [float(row["halves"]) for row in rows]
    return "\n".join([
        *markdown_table(head, lines),
        "",
        f"Mean and range over n = {len({row['seed'] for row in rows})} seeds of the autoencoder "
        f"and the images; {LENGTH} patches, mask ratio {first['mask_ratio']}, {BATCH} images, "
        f"{first['steps']} training steps; a reference of {first['masks']} masks, whose halves "
        f"have a cosine of {min(halves):.2f} to {max(halves):.2f} with each other; "
        f"{int(first['masks']) // 4} masks an estimator; torch {first['torch']}, "
        f"{first['machine']}. Again by `python -m benchmarks.estimator_trained`.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--masks", type=int, default=800)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    rows = [row for seed in range(args.seeds) for row in measure(seed, 0.5, args.steps, args.masks)]
    path, title = args.out / "estimators_trained.csv", "Estimators on a trained autoencoder"
    write_results(path, title, rows, table)


if __name__ == "__main__":
    main()
