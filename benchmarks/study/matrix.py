"""The cross-mask matrix: autoencoders trained under each strategy's masks, reconstructing under
those of every other. Training losses cannot be compared between strategies; these columns can.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

import torch

from amn_masking.patches import masked_mean
from benchmarks.study import store
from benchmarks.study.data import load, split_of
from benchmarks.study.experiments import matrix
from benchmarks.study.pool import csv_of, workers
from benchmarks.study.settings import USABLE

COLUMNS = (
    "data", "seed", "split", "trained", "under", "error", "settings", "software", "hardware",
    "commit",
)  # fmt: skip


def rows_of_seed(data: str, seed: int) -> list[store.Row]:
    """In a process of its own: train each, and measure each under the masks of all."""
    from benchmarks.study import runs, training

    torch.set_num_threads(1)
    runs.quiet()
    code = runs.commit()
    images = load(data, seed)
    pixels = images.test.centre()
    settings = matrix(data)
    models = []
    for setting in settings:
        model = training.build(setting, seed)
        training.train(model, images.train, setting, seed)
        models.append(model.train())
    torch.manual_seed(seed)
    masks = [model.make_mask(pixels).detach() for model in models]
    return [
        dict(
            data=data, seed=str(seed), split=split_of(seed), trained=setting.strategy,
            under=other.strategy,
            error=f"{float(masked_mean(model.error_under(mask, pixels, []), mask.predicted)):.6g}",
            settings=setting.to_json(), software=runs.software(), hardware=runs.hardware(),
            commit=code,
        )
        for setting, model in zip(settings, models, strict=True)
        for other, mask in zip(settings, masks, strict=True)
    ]  # fmt: skip


def read(results: Path) -> list[store.Row]:
    """The rows of the seeds that have the strategies which the matrix has now, and no others."""
    path = csv_of(results, "matrix")
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row["data"], row["seed"]), set()).add(store.said_now(row["settings"]))
    known = {data: {setting.to_json() for setting in matrix(data)} for data in USABLE}
    return [row for row in rows if found[row["data"], row["seed"]] == known[row["data"]]]


def write(data: str, seeds: Sequence[int], jobs: int, results: Path) -> None:
    """The rows of all seeds that have none yet; a seed's at once."""
    rows = read(results)
    done = {int(row["seed"]) for row in rows if row["data"] == data}
    todo = [seed for seed in seeds if seed not in done]
    print(f"matrix: {len(todo)} seeds to do", flush=True)
    with workers(jobs) as pool:
        futures = {pool.submit(rows_of_seed, data, seed): seed for seed in todo}
        for future in as_completed(futures):
            rows += future.result()
            store.write(csv_of(results, "matrix"), rows, COLUMNS)
            print(f"{data}, seed {futures[future]}", flush=True)
