"""Planted difficulty: a frozen autoencoder whose error under every mask is known.

The masking network alone learns, by the package's own path from images to ``loss.backward()``.
What it reaches is compared with random masks and with the oracle's.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.patches import patchify
from benchmarks.enumeration import fixed_masks

ESTIMATORS = ("straight_through", "gumbel", "score_function", "ranking")
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

    def __init__(self, grid: tuple[int, int]) -> None:
        self.grid, self.generator = grid, torch.Generator().manual_seed(0)

    def __call__(self, count: int) -> Tensor:
        amplitude = torch.rand(count, 1, *self.grid, generator=self.generator)
        pixels = (PATCH * self.grid[0], PATCH * self.grid[1])
        return enlarge(amplitude) * torch.randn(count, 3, *pixels, generator=self.generator)


class Colours:
    """Eight images of flat patches in random colours, again and again."""

    def __init__(self, grid: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
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


def reached(estimator, strength, autoencoder, draw, grid, ratio, steps, **network) -> float:
    """Expected masked error after training, without exploration noise, on test images."""
    torch.manual_seed(0)
    test = draw(256)
    masking = AdversarialMasking(
        mask_ratio=ratio,
        patch_size=PATCH,
        estimator=dict(type=estimator),
        strength=strength,
        network=network,
    )
    criterion = CombinedAdversarialLoss(lambda_adv=1.0)
    optimizer = torch.optim.Adam(masking.parameters(), lr=1e-2)
    for _ in range(steps):
        images = draw(64)
        patch_mask = masking(images)
        pred = patchify(autoencoder(images, patch_mask.mask, grid), (PATCH, PATCH))
        optimizer.zero_grad()
        criterion(pred, patchify(images, (PATCH, PATCH)), patch_mask).backward()
        optimizer.step()
    mask = masking.eval()(test).mask
    return rewards(autoencoder, test, mask, grid).mean().item()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_errors_that_do_not_depend_on_the_mask(estimator):
    """300 steps close 90 % of the gap between random and the oracle, the top K."""
    grid, masked = (6, 6), 18
    test = Noise(grid)(256)
    energy = patchify(test, (PATCH, PATCH)).square().mean(-1)
    random, oracle = energy.mean().item(), energy.topk(masked, 1).values.mean().item()
    up, down = (
        reached(estimator, sign, Blank(), Noise(grid), grid, 0.5, steps=300, channels=16)
        for sign in (1.0, -1.0)
    )
    assert up > random + 0.9 * (oracle - random)
    assert down < 0.5 * random


def best_and_random(autoencoder, images, grid, masked):
    """Mean reward of the best mask of each image and of all masks, by enumeration."""
    every = torch.stack(
        [
            rewards(autoencoder, images, mask.float().expand(len(images), -1), grid)
            for mask in fixed_masks(grid[0] * grid[1], masked)
        ]
    )
    return every.max(0).values.mean().item(), every.mean().item()


@pytest.mark.parametrize(
    ("estimator", "share"),
    [("straight_through", 0.9), ("gumbel", 0.9), ("score_function", 0.9), ("ranking", 0.9)],
)
def test_errors_that_grow_where_neighbours_are_masked(estimator, share):
    """500 steps reach 90 % of the best of the 126 masks of 4 patches in 3 x 3."""
    grid, options = (3, 3), dict(grid=(3, 3), ratio=0.44, steps=500, channels=16)
    best, random = best_and_random(Lonely(), Noise(grid)(256), grid, masked=4)
    assert reached(estimator, 1.0, Lonely(), Noise(grid), **options) > share * best
    assert reached(estimator, -1.0, Lonely(), Noise(grid), **options) < 0.5 * random


@pytest.mark.parametrize(
    ("estimator", "share"),
    # The biased estimators stop short where the errors depend on the mask most: see docs/laws.md.
    [("straight_through", 0.65), ("gumbel", 0.65), ("score_function", 0.9), ("ranking", 0.65)],
)
def test_inpainting_from_visible_neighbours(estimator, share):
    """1000 steps on eight images; how hard a patch is, is up to its neighbours alone."""
    grid, options = (3, 3), dict(grid=(3, 3), ratio=0.44, steps=1000, channels=32, downsample=4)
    best, random = best_and_random(Inpaint(), Colours(grid)(8), grid, masked=4)
    up = reached(estimator, 1.0, Inpaint(), Colours(grid), **options)
    assert up > share * best
    assert up > 1.15 * random
    assert reached(estimator, -1.0, Inpaint(), Colours(grid), **options) < 0.75 * random
