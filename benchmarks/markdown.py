"""Tables of the result pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
