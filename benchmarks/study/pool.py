"""An experiment's runs, side by side, each once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.study import store
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.settings import Setting

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


def workers(jobs: int) -> ProcessPoolExecutor:
    """That many processes, of which a run takes one, with one thread."""
    # Started anew and not forked: torch's threads do not survive a fork.
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def runs_of(
    experiment: str, seeds: list[int], data: list[str] | None = None
) -> list[tuple[Setting, int]]:
    """The runs of one of ``EXPERIMENTS``, seed by seed; only of these data sets."""
    return [
        (setting, seed)
        for seed in seeds
        for setting in EXPERIMENTS[experiment]()
        if data is None or setting.recipe.data in data
    ]


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
    try:
        for count, future in enumerate(as_completed(futures), 1):
            try:
                print(f"{count}/{len(todo)}  {future.result()}", flush=True)
            except Exception as error:
                setting, seed = futures[future]
                print(f"{count}/{len(todo)}  {setting.strategy}, seed {seed} FAILED: {error}")
                failed.append(error)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    if failed:
        raise failed[0]
