"""Hypothesis strategies: what the laws are stated over."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

grids_of_images = st.tuples(st.integers(1, 20), st.integers(1, 20)).filter(lambda g: g != (1, 1))
grids = st.one_of(
    grids_of_images,
    st.tuples(st.integers(2, 60)),
    st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(2, 7)),
)
batches = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
# Ratios as users write them, and any others.
ratios = st.one_of(
    st.sampled_from([0.05, 0.1, 0.25, 0.3, 0.375, 0.4, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95]),
    st.floats(0.001, 0.999),
)


def visible_reference(length: int, ratio: float) -> int:
    """The reference MAE's count of visible patches."""
    return int(length * (1 - ratio))


@st.composite
def lengths_and_ratios(draw: st.DrawFn) -> tuple[tuple[int, ...], float]:
    """A grid and a ratio that leaves at least one patch visible and one masked."""
    grid = draw(grids)
    length = math.prod(grid)
    ratio = draw(ratios.filter(lambda r: 0 < visible_reference(length, r) < length))
    return grid, ratio


@st.composite
def score_tensors(draw: st.DrawFn, batch: int, length: int) -> Tensor:
    """``(batch, length)`` keys: smooth, tied, constant or extreme; in one of three dtypes."""
    generator = torch.Generator().manual_seed(draw(seeds))
    kind = draw(st.sampled_from(["normal", "ties", "constant", "extreme"]))
    if kind == "constant":
        values = torch.full((batch, length), draw(st.sampled_from([-5.0, 0.0, 0.5, 30.0])))
    else:
        values = torch.randn(batch, length, generator=generator)
        if kind == "ties":
            values = values.round()
        if kind == "extreme":
            values = values.sign() * 10 ** (4 * values.abs().clamp_max(1))
    return values.to(draw(dtypes))


@st.composite
def quantile_cases(draw: st.DrawFn) -> tuple[tuple[int, ...], float, Tensor, int]:
    """Grid, ratio, keys, seed."""
    grid, ratio = draw(lengths_and_ratios())
    keys = draw(score_tensors(draw(batches), math.prod(grid)))
    return grid, ratio, keys, draw(seeds)


@st.composite
def masks(
    draw: st.DrawFn, free_counts: bool = False, grids: st.SearchStrategy = grids
) -> tuple[Tensor, tuple[int, ...]]:
    """A ``(B, L)`` 0/1 mask, with a visible and a masked patch in every image, and its grid."""
    grid = draw(grids)
    length = math.prod(grid)
    batch = draw(batches)
    generator = torch.Generator().manual_seed(draw(seeds))
    counts = st.integers(1, length - 1)
    shared = draw(counts)
    rows = []
    for _ in range(batch):
        row = torch.zeros(length)
        masked = draw(counts) if free_counts else shared
        row[torch.randperm(length, generator=generator)[:masked]] = 1
        rows.append(row)
    return torch.stack(rows), grid


def ragged(batch, length, seed=0):
    """``(batch, length)`` masks of different counts, the extremes among them."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, length, (batch,), generator=generator)
    counts[0], counts[-1] = 1, length - 1
    mask = torch.zeros(batch, length)
    for row, count in enumerate(counts):
        mask[row, torch.randperm(length, generator=generator)[:count]] = 1
    return mask


def generator(seed):
    return torch.Generator().manual_seed(seed)
