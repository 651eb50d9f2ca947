"""An experiment's runs, side by side, each once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from benchmarks.study import store
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.settings import PhotoRecipe, Recipe, Setting

CSVS = "study_*.csv"


def csv_of(results: Path, experiment: str) -> Path:
    """Where an experiment's rows are."""
    return results / f"study_{experiment}.csv"


def run_one(experiment: str, setting: Setting, seed: int, path: Path) -> str:
    """In a process of its own: run, write the row, and say so in a line."""
    from benchmarks.study.runs import run

    row = run(experiment, setting, seed)
    store.add(path, row)
    return (
        f"{row['data']:8} {row['strategy']:20} seed {seed:3} probe {row['probe']:6} "
        f"knn {row['knn']:6} {float(row['seconds_in_all']):.0f} s"
    )


@contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """That many processes, of which a run takes one, with one thread. They end with this one,
    however it ends, and where the block raises, in the middle of their runs.
    """
    before = active_children()
    # Started anew and not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=end_with, initargs=(os.getpid(),)
    ) as pool:
        try:
            yield pool
        except BaseException:
            for process in active_children():
                if process not in before:
                    process.kill()
            raise


def end_with(parent: int) -> None:
    """End this process, in the middle of its run, when its parent has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def runs_of(
    experiment: str, seeds: list[int], sets: list[str] | None = None
) -> list[tuple[Setting, int]]:
    """The runs of one of ``EXPERIMENTS``, seed by seed.

    Args:
        experiment: its name.
        seeds: each with all settings before the next.
        sets: only these data sets; None: all whose recipes are for this machine.
    """
    return [
        (setting, seed)
        for seed in seeds
        for setting in EXPERIMENTS[experiment]()
        if (setting.recipe.data in sets if sets else suits_this_machine(setting.recipe))
    ]


def suits_this_machine(recipe: Recipe) -> bool:
    """Of recipes for photographs those in float32 are for a CPU, the others for a GPU."""
    if not isinstance(recipe, PhotoRecipe):
        return True
    return (recipe.precision != "float32") == torch.cuda.is_available()


def run_all(
    experiment: str,
    wanted: Sequence[tuple[Setting, int]],
    pool: ProcessPoolExecutor,
    results: Path,
) -> None:
    """All runs that have no row yet. One that fails does not stop the others.

    A run that another experiment has in the same folder is that run: its row is copied.

    Args:
        experiment: whose CSV file gets the rows.
        wanted: settings and seeds.
        pool: of processes.
        results: folder of the CSV files.

    Raises:
        Exception: the first failure, after all runs.
    """
    path = csv_of(results, experiment)
    known = {store.key(row): row for file in results.glob(CSVS) for row in store.read(file)}
    todo = []
    for setting, seed in wanted:
        row = known.get((setting.to_json(), str(seed)))
        if row is None:
            todo.append((setting, seed))
        else:
            store.add(path, row | {"experiment": experiment})
    print(f"{experiment}: {len(todo)} runs to do", flush=True)
    futures = {pool.submit(run_one, experiment, *run, path): run for run in todo}
    failed: list[Exception] = []
    for count, future in enumerate(as_completed(futures), 1):
        try:
            print(f"{count}/{len(todo)}  {future.result()}", flush=True)
        except Exception as error:
            setting, seed = futures[future]
            print(f"{count}/{len(todo)}  {setting.strategy}, seed {seed} FAILED: {error}")
            failed.append(error)
    if failed:
        raise failed[0]
