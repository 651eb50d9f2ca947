"""Random masks are the reference's."""

from __future__ import annotations

import math

import torch
from hypothesis import given

from amn_masking import RandomMasking
from tests.helpers import draws
from tests.helpers.pictures import images_of, patch_of


@given(case=draws.lengths_and_ratios(), batch=draws.batches, seed=draws.seeds)
def test_random_masking_is_the_reference_s_given_the_same_noise(case, batch, seed):
    grid, ratio = case
    length = math.prod(grid)
    noise = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed))
    patch_mask = RandomMasking(ratio, patch_of(grid))(
        images_of(grid, batch), generator=torch.Generator().manual_seed(seed)
    )
    for row in range(batch):
        if len(set(noise[row].tolist())) < length:
            continue  # equal noise: the reference leaves the order open
        by_noise = sorted(range(length), key=lambda patch: noise[row, patch].item())
        keep = int(length * (1 - ratio))
        assert patch_mask.ids_keep[row].tolist() == by_noise[:keep]
        assert patch_mask.ids_restore[row].tolist() == [by_noise.index(p) for p in range(length)]
