"""CSV files of runs: each run once, a row at once or not at all."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

FEATURE_METRICS = (
    "probe",
    "knn",
    "finetune",
    "probe_occluded",
    "probe_noise",
    "probe_blur",
    "probe_swapped",
    "probe_contrast",
    "probe_jpeg",
    "probe_1_percent",
    "probe_10_percent",
)
MASK_METRICS = (
    "mask_ratio",
    "running_gain",
    "score_auc",
    "foreground_lift",
    "noise_lift",
    "adversarial_gain",
    "random_mask_error",
    "position_entropy",
    "mask_distance",
    "score_entropy",
    "error_random_0.25",
    "error_random_0.5",
    "error_random_0.75",
    "error_foreground_hidden",
    "error_foreground_visible",
    "late_ratio",  # of a ratio that moves: the most frequent one of the second half
    "late_share",  # and how much of that half has it
)
COSTS = ("steps", "seconds", "cpu_seconds", "seconds_in_all", "flops_encoder", "flops_step")
METRICS = FEATURE_METRICS + MASK_METRICS
COLUMNS = (
    "experiment", "data", "strategy", "seed", "split", *METRICS, *COSTS, "settings", "software",
    "hardware", "commit",
)  # fmt: skip

# Of adversaries whose rows do not say it, by experiment: the default when they were run.
ESTIMATOR_THEN = {
    "cifar_tuning": "straight_through", "cifar": "inclusion", "cifar_cpu": "inclusion",
    "cifar_time": "inclusion", "learning": "inclusion",
}  # fmt: skip

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows of a file, with nothing in columns that it does not have, and their settings as they
    would be said now; none if there is no file.
    """
    return [
        {**row, "settings": said_now(row["settings"], row["experiment"])} for row in stored(path)
    ]


def stored(path: Path) -> list[Row]:
    """The rows as they were written."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict.fromkeys(COLUMNS, "") | row for row in csv.DictReader(file)]


def said_now(settings: str, experiment: str = "") -> str:
    """Settings in today's words. Before ``prediction_ratio`` a trial of the same three sets had the
    share that is seen in the recipe, and the share that is predicted as the mask ratio; where no
    random share was said, there was none; and where no estimator was, it was the experiment's.
    """
    if '"seen"' not in settings and '"AdversarialMasking"' not in settings:
        return settings
    setting = json.loads(settings)
    if seen := setting["recipe"].pop("seen", 0):
        masking = setting["masking"]
        setting["masking"] = {
            **masking, "mask_ratio": 1 - seen, "prediction_ratio": masking["mask_ratio"],
        }  # fmt: skip
    masking = setting["masking"] or {}
    while "masking" in masking:
        masking = masking["masking"]
    if masking.get("type") == "AdversarialMasking":
        masking.setdefault("random_share", 0.0)
        if experiment in ESTIMATOR_THEN:
            masking.setdefault("estimator", dict(type=ESTIMATOR_THEN[experiment]))
    return json.dumps(setting, sort_keys=True)


def key(row: Row) -> tuple[str, str]:
    """What makes a run that run: its settings and its seed."""
    return row["settings"], row["seed"]


def worth(row: Row) -> float:
    """What the search maximises, the mean of linear probe and nearest neighbours: on shapes, paired
    by seed, it moves less than either from run to run.
    """
    return (float(row["probe"]) + float(row["knn"])) / 2


def add(path: Path, row: Row) -> bool:
    """Add a row, unless that run is there already; whether it was added.

    The file is written anew beside its place and moved there, under a lock, so that neither a kill
    nor a second process leaves half a row, two rows of one run, or loses one.

    Raises:
        ValueError: other columns than ``COLUMNS``.
    """
    if set(row) != set(COLUMNS):
        odd = sorted(set(row) ^ set(COLUMNS))
        raise ValueError(f"a row expected exactly the study's columns; too many or missing: {odd}")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # until it is closed
        if key(row) in {key(known) for known in read(path)}:
            return False
        write(path, [*stored(path), row])
    finally:
        os.close(folder)
    return True


def write(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """All rows of a file, at once."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
