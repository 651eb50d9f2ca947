"""The command line: ``python -m benchmarks.study``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Before torch: two runs go side by side, each with one thread.
os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.study import cifar
from benchmarks.study.cifar_arms import CPU
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.pool import run_all, runs_of, workers
from benchmarks.study.settings import USABLE

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description="A fair comparison of masking strategies."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="the runs of an experiment that have no row yet")
    run.add_argument("experiment", choices=sorted(EXPERIMENTS))
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="100 and up: report")
    run.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each (2)")
    run.add_argument("--sets", nargs="+", help="only these data sets")
    search = commands.add_parser("search", help="optuna over the learned mask, on tuning seeds")
    search.add_argument("--sets", default="shapes", choices=USABLE)
    search.add_argument("--trials", type=int, default=24, help="the budget, 2 or 4 runs each (24)")
    search.add_argument("--jobs", type=int, default=2, help="runs side by side, a thread each (2)")
    steps = commands.add_parser("steps", help="what a step of each strategy costs, in turns")
    steps.add_argument("--sets", nargs="+", default=list(USABLE), choices=[*USABLE, CPU.data])
    matrix = commands.add_parser(
        "matrix", help="trained under one strategy's masks, tested under all"
    )
    matrix.add_argument("--sets", default="shapes", choices=USABLE)
    matrix.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103])
    matrix.add_argument("--jobs", type=int, default=2, help="seeds side by side, a thread each (2)")
    tables = commands.add_parser("tables", help="all tables and figures, from the CSV files")
    smoke = commands.add_parser("smoke", help="the smallest experiment again, from end to end")
    smoke.add_argument("--jobs", type=int, default=2)
    for command in (run, steps):
        command.add_argument(
            "--data", type=Path, metavar="FOLDER", help="pictures of CIFAR-10, FOLDER/train/CLASS/"
            "FILE and FOLDER/test/CLASS/FILE; without it torchvision fetches them"
        )  # fmt: skip
    for command in (run, search, steps, matrix, tables, smoke):
        command.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSVs")
    args = parser.parse_args(arguments)
    if getattr(args, "data", None) is not None:
        os.environ[cifar.FOLDER] = str(args.data)  # for the workers
    if args.command == "run":
        with workers(args.jobs) as pool:
            wanted = runs_of(args.experiment, args.seeds, args.sets)
            run_all(args.experiment, wanted, pool, args.results)
    elif args.command == "search":
        from benchmarks.study.search import search as search_on

        search_on(args.sets, args.trials, args.jobs, args.results)
    elif args.command == "steps":
        from benchmarks.study.steps import write

        write(args.sets, args.results)
    elif args.command == "matrix":
        from benchmarks.study.matrix import write as write_matrix

        write_matrix(args.sets, args.seeds, args.jobs, args.results)
    elif args.command == "tables":
        from benchmarks.study.cifar_tables import write_cifar
        from benchmarks.study.evidence import write_details
        from benchmarks.study.learning_tables import write_learning
        from benchmarks.study.summary import write_summary
        from benchmarks.study.tables import write_all

        write_all(args.results)
        write_cifar(args.results)
        write_learning(args.results)
        if args.results == RESULTS:
            write_details(RESULTS)
            write_summary(RESULTS.parent, RESULTS)
    else:
        from benchmarks.study.smoke import rerun

        rerun(args.jobs, args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
