"""Random numbers of a resumed run."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from amn_masking.adapters.mmpretrain.runner.random_state import seed_worker


class Draws(torch.utils.data.Dataset):
    """What a worker's three generators draw."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return random.random(), np.random.rand(), torch.rand(()).item()


def test_workers_draw_other_numbers_after_every_start():
    def drawn(seed, rank):
        init_fn = partial(seed_worker, None, rank)
        loader = torch.utils.data.DataLoader(Draws(), num_workers=2, worker_init_fn=init_fn)
        torch.manual_seed(seed)
        return [torch.stack(list(batch)).T for _ in range(2) for batch in loader]

    numbers = torch.cat(drawn(1, 0))
    assert torch.equal(torch.cat(drawn(1, 0)), numbers)
    for other in (torch.cat(drawn(2, 0)), torch.cat(drawn(1, 1))):
        assert not (other == numbers).any()
    for column in numbers.T:
        assert len(set(column.tolist())) == len(numbers), "two starts or two workers drew the same"
