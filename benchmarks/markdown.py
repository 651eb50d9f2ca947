"""Tables of the result pages."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table, each cell as it is given: 0.50 stays 0.50.

    Raises:
        ValueError: a row has more or fewer cells than the head.
    """
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    wrong = next((row for row in cells if len(row) != len(head)), None)
    if wrong is not None:
        raise ValueError(f"expected {len(head)} cells, for {list(head)}, got {wrong}")
    return tabulate(cells, list(head), tablefmt="github", disable_numparse=True).splitlines()


def write_results(
    path: Path,
    title: str,
    rows: Sequence[Mapping[str, object]],
    table: Callable[[list[dict[str, str]]], str],
) -> None:
    """Write rows to a CSV file and, beside it, the page of the table made from what was written.

    Args:
        path: of the CSV file; its folder is made if it is not there.
        title: of the page.
        rows: at least one, all with the same keys.
        table: Markdown of the rows as they are read back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with path.open(newline="") as file:
        text = table(list(csv.DictReader(file)))
    path.with_suffix(".md").write_text(f"# {title}\n\n{text}")
    print(text)
