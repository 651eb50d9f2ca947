"""Block masks."""

from __future__ import annotations

import math

import pytest
import torch

from amn_masking import RandomMasking
from amn_masking.strategies import (
    BlockMasking,
)
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, images_of


def boundary(mask, grid):
    """Neighbouring patches of which one is masked, per masked patch."""
    square = mask.reshape(-1, *grid)
    edges = (square[:, 1:] != square[:, :-1]).sum((1, 2)) + (
        square[:, :, 1:] != square[:, :, :-1]
    ).sum((1, 2))
    return (edges / mask.sum(1)).mean().item()


@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.6, 0.75])
def test_blocks_have_less_boundary_than_single_patches(ratio):
    grid, images = (14, 14), images_of((14, 14), 200)
    block = BlockMasking(ratio, SIDE)(images, generator(0)).mask
    random = RandomMasking(ratio, SIDE)(images, generator(0)).mask
    assert boundary(block, grid) < 0.45 * boundary(random, grid)


def test_a_block_that_fits_exactly_is_a_rectangle_but_for_what_is_trimmed():
    """min_patches = all that is masked: one rectangle, give or take its rounding."""
    grid = (12, 12)
    strategy = BlockMasking(0.25, SIDE, min_patches=36, min_aspect=1.0)  # 36 = 6 x 6
    mask = strategy(images_of(grid, 50), generator(0)).mask.reshape(-1, *grid)
    for image in mask:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == 6
        assert image.sum() == 36
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def slow_blocks(grid, num_masked, least, min_aspect, numbers):
    """The first rectangle that covers each patch, one rectangle after the other."""
    first = torch.full(grid, float(len(numbers)))
    for index, (a, b, c, d) in enumerate(numbers):
        area = least + a * (num_masked - least)
        aspect = min_aspect ** -(2 * b - 1)
        tall = min(max(round(math.sqrt(area * aspect)), 1), grid[0])
        wide = min(max(round(area / tall), 1), grid[1])
        top, left = int(c * (grid[0] - tall + 1)), int(d * (grid[1] - wide + 1))
        for row in range(top, top + tall):
            for column in range(left, left + wide):
                first[row, column] = min(first[row, column].item(), index)
    return -first.flatten()


def test_blocks_are_those_of_a_slow_reference():
    grid, images = (9, 13), images_of((9, 13), 3)
    strategy = BlockMasking(0.5, SIDE, min_patches=6)
    num_masked = 9 * 13 - 58
    priorities = strategy.priorities(images, num_masked, generator(3))
    blocks = int(-priorities.min().item())
    count = 4 + math.ceil(2 * math.log(1 - num_masked / 117) / math.log(1 - 6 / 117))
    assert blocks <= count
    numbers = torch.rand(3, count, 4, generator=generator(3)).tolist()
    for image in range(3):
        expected = slow_blocks(grid, num_masked, 6, 0.3, numbers[image])
        assert torch.equal(priorities[image], expected)
