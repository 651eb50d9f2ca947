"""The command line: ``python -m tests.breaks [breaks | subtle] [part of what is broken]``."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks.markdown import markdown_table
from tests.breaks.breaks import BREAKS, ROOT, run
from tests.breaks.subtle import SUBTLE

TABLES = {
    "breaks": (
        BREAKS,
        "Each was broken in a copy of the project, and its test was run: what mutation testing does "
        "not reach, because it starts processes and trains.",
    ),
    "subtle": (
        SUBTLE,
        "Mutants made by hand: for a line of the core, what would be plausible and wrong there. Each "
        "was made in a copy of the project, and the tests beside it were run.",
    ),
}


def write(name: str, only: str) -> int:
    """Run a list, write its table unless only a part was run, and count what was missed."""
    wanted, story = TABLES[name]
    wanted = tuple(broken for broken in wanted if only in broken.what)
    rows, missed = [], 0
    with ThreadPoolExecutor(2) as pool:  # each waits for a process of its own
        for broken, caught in zip(wanted, pool.map(run, wanted), strict=True):
            missed += not caught
            rows.append([broken.what, f"`{broken.test}`", "fails" if caught else "PASSES"])
            print(f"{'caught' if caught else 'MISSED'}: {broken.what}", flush=True)
    print(f"{name}: {len(wanted) - missed} of {len(wanted)} caught", flush=True)
    if not only:
        (ROOT / f"docs/results/{name}.md").write_text(
            f"# Tests that were seen to fail\n\n{story} Made by `make breaks`: "
            f"{len(wanted) - missed} of {len(wanted)} were noticed.\n\n"
            + "\n".join(markdown_table(["broken", "test", ""], rows))
            + "\n"
        )
    return missed


def main() -> None:
    names = sys.argv[1:2] or list(TABLES)
    only = sys.argv[2] if len(sys.argv) > 2 else ""
    sys.exit(sum(write(name, only) for name in names) > 0)


if __name__ == "__main__":
    main()
