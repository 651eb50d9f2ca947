"""Planted difficulty: a frozen autoencoder whose error under every mask is known.

    python -m benchmarks.planted_difficulty

The masking network alone learns, by the package's own path from images to ``loss.backward()``, and
what it reaches is compared with random masks and with the best mask of each image. Writes
docs/results/planted.csv and a table made from it.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.patches import patchify
from benchmarks.enumeration import fixed_masks
from benchmarks.markdown import markdown_table, write_results

ESTIMATORS = ("straight_through", "gumbel", "inclusion", "score_function", "ranking")
PATCH = 4
NEIGHBOURS = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]


def neighbours(grid_map: Tensor) -> Tensor:
    """Sum over the four neighbours, ``(B, 1, h, w)``."""
    return F.conv2d(grid_map, NEIGHBOURS, padding=1)


def enlarge(patches: Tensor) -> Tensor:
    """``(B, C, h, w)``, one value a patch, to images."""
    return patches.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


class Noise:
    """Patches of noise, each of its own amplitude; fresh images without end."""

    def __init__(self, grid: tuple[int, int], seed: int) -> None:
        self.grid, self.generator = grid, torch.Generator().manual_seed(seed)

    def __call__(self, count: int) -> Tensor:
        amplitude = torch.rand(count, 1, *self.grid, generator=self.generator)
        pixels = (PATCH * self.grid[0], PATCH * self.grid[1])
        return enlarge(amplitude) * torch.randn(count, 3, *pixels, generator=self.generator)


class Colours:
    """Eight images of flat patches in random colours, again and again."""

    def __init__(self, grid: tuple[int, int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pool = enlarge(torch.randn(8, 3, *grid, generator=generator))

    def __call__(self, count: int) -> Tensor:
        return self.pool.repeat(-(-count // 8), 1, 1, 1)[:count]


class Blank(nn.Module):
    """Predicts 0: a patch's error is its own energy, whatever else is masked."""

    def forward(self, images: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        return torch.zeros_like(images)


class Lonely(nn.Module):
    """Predicts less of a patch the more of its neighbours are masked.

    The error is the energy times (1 + share of neighbours masked).
    """

    def forward(self, images: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        hidden = mask.reshape(-1, 1, *grid)
        share = neighbours(hidden) / neighbours(torch.ones_like(hidden))
        return images * (1 - enlarge((1 + share).sqrt()))


class Inpaint(nn.Module):
    """Predicts the mean of a patch's visible neighbours; black if it has none."""

    def forward(self, images: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        colours, visible = F.avg_pool2d(images, PATCH), (1 - mask).reshape(-1, 1, *grid)
        shown = (colours * visible).reshape(-1, 1, *grid)
        total, count = neighbours(shown).reshape(colours.shape), neighbours(visible)
        return enlarge(torch.where(count > 0, total / count.clamp_min(1), 0.0))


def rewards(autoencoder: nn.Module, images: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B,)`` mean error of the masked patches."""
    pred = autoencoder(images, mask, grid)
    error = patchify(pred - images, (PATCH, PATCH)).square().mean(-1)
    return (error * mask).sum(1) / mask.sum(1)


@dataclass(frozen=True)
class Problem:
    """A frozen autoencoder, images, and how long a masking network may learn on them.

    Attributes:
        title: for the table.
        autoencoder: called with images, mask and grid.
        images: made with a grid and a seed, gives that many images when called.
        grid: patches per column and row.
        masked: patches to mask.
        mask_ratio: that gives this count.
        steps: of 64 images, Adam at 1e-2.
        network: arguments of the masking network.
    """

    title: str
    autoencoder: nn.Module
    images: Callable[[tuple[int, int], int], Callable[[int], Tensor]]
    grid: tuple[int, int]
    masked: int
    mask_ratio: float
    steps: int
    network: dict[str, Any]

    def test_images(self, seed: int) -> Tensor:
        """Images that no training sees, but for :class:`Colours`, which has eight in all."""
        return self.images(self.grid, seed)(256)

    def best_random_worst(self, seed: int) -> tuple[float, float, float]:
        """Mean reward of each image's best mask, of random ones, and of its worst."""
        images = self.test_images(seed)
        if isinstance(self.autoencoder, Blank):  # too many masks; but patches are independent
            energy = patchify(images, (PATCH, PATCH)).square().mean(-1)
            best, worst = energy.topk(self.masked).values, energy.topk(self.masked, largest=False)
            return best.mean().item(), energy.mean().item(), worst.values.mean().item()
        every = torch.stack(
            [
                rewards(self.autoencoder, images, mask.float().expand(len(images), -1), self.grid)
                for mask in fixed_masks(self.grid[0] * self.grid[1], self.masked)
            ]
        )
        best, worst = every.max(0).values, every.min(0).values
        return best.mean().item(), every.mean().item(), worst.mean().item()

    def reached(self, estimator: str, strength: float, seed: int = 0) -> float:
        """Mean reward after training, without exploration noise, on the test images."""
        torch.manual_seed(seed)
        draw, test = self.images(self.grid, seed), self.test_images(seed)
        draw(256)  # the test images, if these are fresh ones
        masking = AdversarialMasking(
            mask_ratio=self.mask_ratio,
            patch_size=PATCH,
            estimator=dict(type=estimator),
            strength=strength,
            network=self.network,
        )
        criterion = CombinedAdversarialLoss(lambda_adv=1.0)
        optimizer = torch.optim.Adam(masking.parameters(), lr=1e-2)
        for _ in range(self.steps):
            images = draw(64)
            patch_mask = masking(images)
            pred = patchify(self.autoencoder(images, patch_mask.mask, self.grid), (PATCH, PATCH))
            optimizer.zero_grad()
            criterion(pred, patchify(images, (PATCH, PATCH)), patch_mask).backward()
            optimizer.step()
        mask = masking.eval()(test).mask
        return rewards(self.autoencoder, test, mask, self.grid).mean().item()


PROBLEMS = {
    "alone": Problem(
        "the error of a patch is its own",
        Blank(), Noise, (6, 6), 18, 0.5, 300, dict(channels=16, downsample=1),
    ),
    "lonely": Problem(
        "it grows with masked neighbours",
        Lonely(), Noise, (3, 3), 4, 0.44, 500, dict(channels=16, downsample=1),
    ),
    "inpaint": Problem(
        "inpainting from visible neighbours",
        Inpaint(), Colours, (3, 3), 4, 0.44, 1000, dict(channels=32, downsample=4),
    ),
}  # fmt: skip


def run(seeds: int) -> list[dict[str, object]]:
    """One row per problem, estimator, strength and seed."""
    rows: list[dict[str, object]] = []
    for name, problem in PROBLEMS.items():
        for seed in range(seeds):
            best, random, worst = problem.best_random_worst(seed)
            for estimator in ESTIMATORS:
                for strength in (1.0, -1.0):
                    got = problem.reached(estimator, strength, seed)
                    numbers = dict(reached=got, random=random, best=best, worst=worst)
                    rows.append(
                        dict(problem=name, estimator=estimator, strength=strength, seed=seed)
                        | {key: f"{value:.5g}" for key, value in numbers.items()}
                        | dict(
                            steps=problem.steps,
                            torch=torch.__version__.split("+")[0],
                            machine=f"CPU, {platform.machine()}",
                        )
                    )
                    print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: share of the best mask's reward, mean and range over the seeds."""
    titles = [f"{problem.title}, {problem.steps} steps" for problem in PROBLEMS.values()]

    def cell(column: str, **where: object) -> str:
        shares = np.array(
            [
                float(row[column]) / float(row["best"])
                for row in rows
                if all(row[key] == str(value) for key, value in where.items())
            ]
        )
        return f"{shares.mean():.2f} ({shares.min():.2f} to {shares.max():.2f})"

    lines = [["random masks", *(cell("random", problem=p) for p in PROBLEMS)]]
    for strength, sign in ((1.0, "+1"), (-1.0, "-1")):
        for estimator in ESTIMATORS:
            where = dict(estimator=estimator, strength=strength)
            cells = (cell("reached", problem=p, **where) for p in PROBLEMS)
            lines.append([f"`{estimator}`, strength {sign}", *cells])
    first = rows[0]
    return "\n".join([
        *markdown_table(["", *titles], lines),
        "",
        f"Mean and range over n = {len({row['seed'] for row in rows})} seeds; torch "
        f"{first['torch']}, {first['machine']}. Again by "
        "`python -m benchmarks.planted_difficulty`.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    rows = run(args.seeds)
    write_results(args.out / "planted.csv", "Planted difficulty", rows, table)


if __name__ == "__main__":
    main()
