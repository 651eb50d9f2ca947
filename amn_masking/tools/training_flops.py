"""What a training step of a method costs, by torch's counter."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from amn_masking.adapters.mmpretrain.mixin import images_of
from amn_masking.strategies import RandomRatioMasking

FEW = 4  # images whose FLOPs are counted
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a training in which the ratio moves


def training_flops(model: Any, batch: Any) -> float:
    """FLOPs of a training step, forward and backward, per image; the mean over the training where
    the mask ratio moves.

    Args:
        model: a method of ours, in training mode, with or without a strategy.
        batch: what its data loader gives.

    Raises:
        ValueError: a schedule that is not by progress.
    """
    masking = model.masking
    moving = False
    for part in [] if masking is None else masking.modules():
        for what, schedule in getattr(part, "schedules", {}).items():
            if schedule.moves and schedule.by != "progress":
                raise ValueError(
                    f"its {what} has a schedule by={schedule.by!r}, which does not fit into a "
                    "shorter run; say it by='progress'"
                )
            moving |= schedule.moves and what.endswith("ratio")
        moving |= isinstance(part, RandomRatioMasking)
    counts = []
    for progress in POINTS if moving else POINTS[:1]:
        if masking is not None:
            masking.set_progress(progress)
        counts.append(step_flops(model, batch))
    return sum(counts) / len(counts)


def step_flops(model: Any, batch: Any) -> float:
    """FLOPs of a training step per image, on a few images of a batch."""
    data = model.data_preprocessor(deepcopy(batch), True)
    inputs, samples = data["inputs"], data["data_samples"]
    views = [x[:FEW] for x in inputs] if isinstance(inputs, (list, tuple)) else inputs[:FEW]
    with FlopCounterMode(display=False) as counter:
        model.parse_losses(model.loss(views, samples[:FEW] if samples else samples))[0].backward()
    return float(counter.get_total_flops()) / len(images_of(views))
