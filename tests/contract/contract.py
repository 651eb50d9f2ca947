"""The contract: one suite of laws for the adapter of every codebase.

    python -m tests.contract.contract

Runs every law of tests/contract/laws.py on every small model of tests/contract/targets and writes
docs/results/adapters.csv and docs/results/adapters.md. A codebase whose package is not installed
gets a row that says so.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.markdown import markdown_table
from tests.contract import targets
from tests.contract.laws import LAWS
from tests.contract.targets.target import Target

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"
MODULES = tuple(
    f"{targets.__name__}.{module.name}"
    for module in pkgutil.iter_modules(targets.__path__)
    if module.name.endswith(("_target", "_targets"))
)
ABSENT = "not installed"


def load(module: str) -> tuple[list[Target], str]:
    """The targets of a module; none, and the package that is missing, where it is not installed.

    Raises:
        ImportError: it cannot be imported although what it needs is there.
    """
    try:
        return list(importlib.import_module(module).TARGETS), ""
    except ImportError as error:
        # An adapter may say in words of its own what to install.
        name = error.name or getattr(error.__cause__, "name", None) or ""
        package = name.split(".")[0]
        if not package or importlib.util.find_spec(package) is not None:
            raise
        return [], package


def installed(package: str) -> str:
    """The version of a package, or an empty text."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def check(target: Target) -> dict[str, str]:
    """A row of the matrix; a law that raises is broken, and says why on stderr."""
    package = f"{target.package} {installed(target.package)}"
    row = {"adapter": target.name, "package": package, "torch": version("torch")}
    for name, law in LAWS.items():
        try:
            row[name] = {True: "yes", False: "NO", None: "-"}[law(target)]
        except Exception:
            print(f"{target.name}, {name}:", file=sys.stderr)
            traceback.print_exc()
            row[name] = "NO"
    support = {
        "free counts": target.free_counts,
        "gate": target.gate,
        "left out": target.leaves_out,
    }
    return row | {
        name: "refused" for name, has in support.items() if not has and row[name] == "yes"
    }


def absent(name: str, package: str) -> dict[str, str]:
    """The row of a codebase that is not installed."""
    row = {"adapter": name, "package": f"{package} {ABSENT}", "torch": version("torch")}
    return row | dict.fromkeys(LAWS, ABSENT)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: a row per adapter, the versions, and what each law says."""
    head = ["adapter", *LAWS]
    versions = sorted({row["package"] for row in rows})
    return "\n".join([
        "# Adapters",
        "",
        "Made by `python -m tests.contract.contract`; the laws are in `tests/contract/laws.py`.",
        f"With {', '.join(versions)}, torch {rows[0]['torch']}.",
        "",
        *markdown_table(head, ([row[key] for key in head] for row in rows)),
        "",
        "`refused`: the adapter cannot do it, and says so in a ValueError that names the way out.",
        "`-`: the law has nothing to say about that codebase.",
        "",
        *(f"- **{name}**: {legend(name)}" for name in LAWS),
        "",
    ])  # fmt: skip


def legend(name: str) -> str:
    """What a law says, on one line."""
    return " ".join((LAWS[name].__doc__ or "").split())


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    rows = []
    for module in MODULES:
        found, missing = load(module)
        name = module.rsplit(".", 1)[1].rsplit("_target", 1)[0]
        for row in [check(t) for t in found] or [absent(name, missing)]:
            print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    with (RESULTS / "adapters.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "adapters.md").write_text(table(rows))
    print(table(rows))
    return int(any(row[name] == "NO" for row in rows for name in LAWS))


if __name__ == "__main__":
    sys.exit(main())
