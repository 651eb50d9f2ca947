"""Random numbers that masks are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

GOLDEN = (math.sqrt(5) - 1) / 2


def uniform(
    shape: Sequence[int],
    device: torch.device,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1).

    Raises:
        TypeError: ``generator`` is not a ``torch.Generator``.
    """
    return torch.rand(tuple(shape), device=device, dtype=dtype, **source(generator))


def normal(
    shape: Sequence[int], device: torch.device, generator: Generator | None = None
) -> Tensor:
    """Numbers of the standard normal distribution, float32; raises as :func:`uniform`."""
    return torch.randn(tuple(shape), device=device, **source(generator))


def source(generator: Generator | None) -> dict[str, Any]:
    """The keyword ``generator``, left out if there is none.

    torch.compile cannot trace ``generator=None`` where a size is symbolic.
    """
    if generator is None:
        return {}
    if not isinstance(generator, Generator):
        raise TypeError(
            "generator expected a torch.Generator on the images' device, such as "
            f"torch.Generator(device).manual_seed(0), got {type(generator).__name__}"
        )
    return {"generator": generator}


def gumbel(like: Tensor, generator: Generator | None = None) -> Tensor:
    """Standard Gumbel noise of the shape of ``like``, finite for every draw."""
    tiny = torch.finfo(like.dtype).tiny
    # The numbers are in [0, 1): both logarithms need a floor.
    chance = uniform(like.shape, like.device, generator, like.dtype).clamp_min(tiny)
    return -torch.log((-torch.log(chance)).clamp_min(tiny))


def tie_breaks(
    like: Tensor, grid: tuple[int, int] | None, generator: Generator | None = None
) -> Tensor:
    """``(B, L)`` numbers in [0, 1) that order patches of equal priority.

    Args:
        like: ``(B, L)``.
        grid: (rows, columns) of patches, for the same order in every image and call, as in
            ``eval()``: multiples of two irrational numbers, of which every row, column and corner
            of the grid has its even share. None for numbers that are drawn anew.
        generator: source of the drawn ones.
    """
    if grid is None:
        return uniform(like.shape, like.device, generator)
    rows, columns = (
        torch.arange(size, device=like.device, dtype=torch.float64) * step
        for size, step in zip(grid, (math.sqrt(2), GOLDEN), strict=True)
    )
    return (rows[:, None] + columns).frac().flatten().to(torch.float32).expand_as(like)
