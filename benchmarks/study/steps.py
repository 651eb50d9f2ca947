"""What a training step costs at the study's size: strategies in turns, in one process.

Processor time of runs side by side moves by a tenth and more with what runs beside them; the
epochs of the comparison at equal time are set by these ratios.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import overhead
from benchmarks.overhead import hardware, seconds, step_of
from benchmarks.study import measures, training
from benchmarks.study.cifar_arms import CPU, timed
from benchmarks.study.experiments import report
from benchmarks.study.runs import data_of, quiet
from benchmarks.study.settings import Setting, random_masks, ratio_of

ROUNDS = 60


def measure(settings: Sequence[Setting], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row per setting of one data set: median step and encoder FLOPs over those of random masks.

    Raises:
        ValueError: none of them, or more than one, is ``random``.
    """
    names = [setting.strategy for setting in settings]
    if names.count("random") != 1:
        raise ValueError(f"expected one setting of random masks to compare with, got {names}")
    torch.set_num_threads(1)
    quiet()
    recipe = settings[0].recipe
    images = data_of(recipe, 0).train.centre()[: recipe.batch].cpu()
    models = [training.build(setting, 0).train() for setting in settings]
    for model in models:
        model.masking.set_progress(1.0)  # the end of a random share, so that nothing is saved
    flops = [encoder_flops(setting, images) for setting in settings]
    steps = [step_of(model, images, amp=False, compiled=False, state={}) for model in models]
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds + 2):
        for place in range(len(steps)):
            index = (place + turn) % len(steps)
            elapsed = seconds(steps[index], "cpu")
            if turn > 1:
                times[index].append(elapsed)
    base = names.index("random")
    rows = []
    for index, setting in enumerate(settings):
        ratio, low, high = overhead.ratio_of(times[index], times[base])
        rows.append(
            dict(
                data=recipe.data, strategy=setting.strategy, settings=setting.to_json(),
                rounds=rounds, step_ratio=f"{ratio:.4f}", step_low=f"{low:.4f}",
                step_high=f"{high:.4f}", flops_ratio=f"{flops[index] / flops[base]:.4f}",
                hardware=hardware("cpu"), torch=torch.__version__,
            )
        )  # fmt: skip
    return rows


def encoder_flops(setting: Setting, images: Tensor) -> float:
    """FLOPs per image of the encoder in a step: of every pass forward, and of the one that is
    trained backward, which is taken as twice its forward. The oracle, for one, has other passes.
    """
    ratio = ratio_of(setting.masking)
    if ratio is None:
        raise ValueError(f"expected a strategy of one mask ratio, got {setting.masking}")
    every, trained = (
        measures.step_flops(training.build(one, 0), images)["flops_encoder"]
        for one in (setting, random_masks(setting.recipe, ratio))
    )
    return every + 2 * trained


def write(data: Sequence[str], results: Path) -> None:
    """Measure the strategies of the report, or of ``cifar_time``, on these data sets; the rows of
    others in study_steps.csv stay.
    """
    path = results / "study_steps.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["data"] not in data]
    for name in data:
        settings = timed() if name == CPU.data else report()
        rows += measure([setting for setting in settings if setting.recipe.data == name])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        equal = {cost: epochs(row, cost) for cost in ("flops_ratio", "step_ratio")}
        print(row["data"], row["strategy"], row["step_ratio"], "epochs at equal cost:", equal)


def epochs(row: Mapping[str, str], cost: str) -> int:
    """For how long the strategy of a row may train, to cost what random masks do.

    Args:
        row: of study_steps.csv.
        cost: ``'flops_ratio'`` or ``'step_ratio'``.
    """
    planned: int = json.loads(row["settings"])["recipe"]["epochs"]
    return max(2, round(planned / float(row[cost])))
