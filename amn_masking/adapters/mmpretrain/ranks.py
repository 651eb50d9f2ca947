"""What several processes of one training tell each other."""

from __future__ import annotations

import logging

import torch
from mmengine.dist import all_gather, get_world_size
from mmengine.logging import print_log
from torch import Tensor


@torch.no_grad()
def over_ranks(numbers: dict[str, Tensor]) -> dict[str, float]:
    """Numbers for the log, over their values and over all ranks (mmengine's are rank 0's).

    The mean; the least where a name ends in ``_min``, the largest in ``_max``. One ``all_gather``
    of a few bytes, and one read from the device.

    Args:
        numbers: scalars, or values of as many steps, by name; the same on every rank.
    """
    packed = torch.stack([value.detach().float().reshape(-1) for value in numbers.values()])
    if get_world_size() > 1:
        packed = torch.cat(all_gather(packed), dim=1)
    mean, least, largest = torch.stack([packed.mean(1), packed.amin(1), packed.amax(1)]).tolist()
    reduced = {"_min": least, "_max": largest}
    return {name: reduced.get(name[-4:], mean)[i] for i, name in enumerate(numbers)}


def warn_if_ranks_draw_alike() -> None:
    """Warn where all ranks were given one seed, so that they draw the same masks or noise."""
    if get_world_size() == 1:
        return
    # Half a seed each: they have 64 bits, and MPS and some accelerators have no such integers.
    seeds = {int(seed) for seed in all_gather(torch.tensor(torch.initial_seed() % 2**31))}
    if len(seeds) == 1:
        print_log(
            "all ranks draw their masks from one seed, so the images of different ranks are masked "
            "alike; set randomness=dict(diff_rank_seed=True) in the config",
            logger="current",
            level=logging.WARNING,
        )
