"""Random numbers: their distribution, their source, and the fixed order of equal patches."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from amn_masking.noise import gumbel, normal, tie_breaks, uniform
from tests.helpers.draws import generator

CPU = torch.device("cpu")
DRAWS = {
    "uniform": (lambda source: uniform((4, 5000), CPU, source), stats.uniform),
    "normal": (lambda source: normal((4, 5000), CPU, source), stats.norm),
    "gumbel": (lambda source: gumbel(torch.empty(4, 5000), source), stats.gumbel_r),
}
each = pytest.mark.parametrize("name", DRAWS)


@each
def test_the_distribution(name):
    draw, distribution = DRAWS[name]
    numbers = draw(generator(0))
    assert numbers.shape == (4, 5000)
    assert stats.kstest(numbers.flatten().numpy(), distribution.cdf).pvalue > 0.01


@each
def test_a_generator_is_the_only_source(name):
    draw, _ = DRAWS[name]
    state = torch.get_rng_state()
    assert torch.equal(draw(generator(1)), draw(generator(1)))
    assert not torch.equal(draw(generator(1)), draw(generator(2)))
    assert torch.equal(torch.get_rng_state(), state)
    draw(None)
    assert not torch.equal(torch.get_rng_state(), state)


@each
@pytest.mark.parametrize("source", [0, "cpu"])
def test_what_is_no_generator_is_refused(name, source):
    with pytest.raises(TypeError, match=r"expected a torch\.Generator on the images' device"):
        DRAWS[name][0](source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gumbel_noise_is_finite_whatever_is_drawn(dtype, monkeypatch):
    """0, and the largest number below 1."""
    ends = torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    monkeypatch.setattr(torch, "rand", lambda shape, **options: ends)
    noise = gumbel(torch.empty(2, dtype=dtype))
    assert noise.dtype == dtype
    assert torch.isfinite(noise).all()
    assert noise[0] < noise[1]


@pytest.mark.parametrize("grid", [(1, 1), (14, 14), (7, 5), (3, 40), (50,), (8, 14, 14)])
def test_fixed_tie_breaks_are_distinct_and_the_same_in_every_image_and_call(grid):
    like = torch.empty(3, math.prod(grid))
    numbers = tie_breaks(like, grid)
    assert numbers.dtype == torch.float32
    assert torch.equal(numbers, tie_breaks(like, grid, generator(1)))
    assert torch.equal(numbers, numbers[:1].expand(3, -1))
    assert len(numbers[0].unique()) == like.shape[1]
    assert (numbers >= 0).all()
    assert (numbers < 1).all()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_fixed_tie_breaks_favour_no_row_column_or_corner(share):
    """Of every row and column of the grid about this share comes first."""
    numbers = tie_breaks(torch.empty(1, 196), (14, 14)).reshape(14, 14)
    first = (numbers < numbers.flatten().quantile(share)).float()
    for part in (first, first.T):
        assert part.mean(1).numpy() == pytest.approx(share, abs=0.15)
    corners = first.unfold(0, 7, 7).unfold(1, 7, 7).mean((2, 3))
    assert corners.numpy() == pytest.approx(share, abs=0.1)


def test_drawn_tie_breaks_differ_from_image_to_image():
    numbers = tie_breaks(torch.empty(2, 196), None, generator(0))
    assert not torch.equal(numbers[0], numbers[1])
    assert torch.equal(numbers, tie_breaks(torch.empty(2, 196), None, generator(0)))
