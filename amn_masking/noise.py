"""Random numbers that masks are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

GOLDEN = (math.sqrt(5) - 1) / 2
# Of the last axis of a grid, the one before it, and a third: no sum of them is a fraction.
STEPS = (GOLDEN, math.sqrt(2), math.sqrt(3))
INCREMENT = -0x61C8864680B583EB  # 2^64 times GOLDEN, as a signed integer


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


def hashed(mask: Tensor) -> Tensor:
    """``(B, L)`` numbers in [0, 1) as if drawn uniformly, which follow from each image's ``mask``,
    ``(B, L)``: for a choice in ``eval()`` that is alike in every call and knows nothing else.

    By the mixing steps of SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
    Generators" (OOPSLA 2014), in integers that wrap around.
    """
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    image = (mask.long() * mixed(places)).sum(1, keepdim=True)
    return (mixed(image + places * INCREMENT) >> 40 & 0xFFFFFF).to(torch.float32) / 2**24


def mixed(x: Tensor) -> Tensor:
    """int64 to int64, each bit of which depends on all bits of ``x``."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


def tie_breaks(
    like: Tensor, grid: tuple[int, ...] | None, generator: Generator | None = None
) -> Tensor:
    """``(B, L)`` numbers in [0, 1) that order patches of equal priority.

    Args:
        like: ``(B, L)``.
        grid: (rows, columns) of patches, for the same order in every image and call, as in
            ``eval()``: multiples of an irrational number for each axis, of which every row, column
            and corner of the grid has its even share. None for numbers that are drawn anew.
        generator: source of the drawn ones.
    """
    if grid is None:
        return uniform(like.shape, like.device, generator)
    places = torch.zeros((), device=like.device, dtype=torch.float64)
    for size, step in zip(grid, STEPS[len(grid) - 1 :: -1], strict=True):
        axis = torch.arange(size, device=like.device, dtype=torch.float64) * step
        places = places[..., None] + axis
    return places.frac().flatten().to(torch.float32).expand_as(like)
