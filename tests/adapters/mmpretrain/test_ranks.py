"""What the processes of one training tell each other: one process, and two."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from torch import distributed, multiprocessing

from amn_masking.adapters.mmpretrain import ranks
from amn_masking.adapters.mmpretrain.ranks import over_ranks, warn_if_ranks_draw_alike

NUMBERS = {"loss": [1.0, 2.0], "ratio_min": [0.3, 0.1], "ratio_max": [0.3, 0.6]}


def numbers(rank):
    return {name: torch.tensor(values) + rank for name, values in NUMBERS.items()}


def test_one_process_reduces_its_own_values():
    found = over_ranks(numbers(0))
    assert found == pytest.approx({"loss": 1.5, "ratio_min": 0.1, "ratio_max": 0.6})
    assert over_ranks({"a": torch.tensor(2, dtype=torch.int64)}) == {"a": 2.0}


def test_one_process_never_warns(monkeypatch):
    monkeypatch.setattr(ranks, "print_log", lambda *args, **options: pytest.fail("warned"))
    warn_if_ranks_draw_alike()


def process(rank, meeting, folder):
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    said = []
    ranks.print_log = lambda text, **options: said.append(text)
    for seeds in ((1, 2), (3, 3)):
        torch.manual_seed(seeds[rank])
        warn_if_ranks_draw_alike()
        said.append(None)
    torch.save((over_ranks(numbers(rank)), said), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes(tmp_path):
    multiprocessing.spawn(process, (f"file://{tmp_path}/meeting", str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        found, said = torch.load(tmp_path / f"{rank}.pt")
        assert found == pytest.approx({"loss": 2.0, "ratio_min": 0.1, "ratio_max": 1.6})
        different, alike = said.index(None), said[1:-1]
        assert different == 0
        assert len(alike) == 1
        assert "all ranks draw their masks from one seed" in alike[0]
