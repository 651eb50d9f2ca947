"""Tables of the result pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table, each cell as it is given: 0.50 stays 0.50."""
    head, *rows = ([str(cell).replace("|", "\\|") for cell in row] for row in [head, *rows])
    return tabulate(rows, head, tablefmt="github", disable_numparse=True).splitlines()
