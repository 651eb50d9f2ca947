"""The Python of the pages that promise to be run, block after block."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PAGES = ("extending",)
MOST = 20  # lines of a part of one's own


def blocks(page):
    """The blocks of Python of a page, with the number of the line before each."""
    text = (ROOT / f"docs/{page}.md").read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in found]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_after_the_ones_before(page):
    names: dict[str, object] = {}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, f"docs/{page}.md", "exec"), names)
    assert len(blocks(page)) > 3


def test_a_part_of_one_s_own_takes_few_lines():
    for line, code in blocks("extending"):
        assert sum(bool(row.strip()) for row in code.splitlines()) < MOST, f"line {line}"


def test_every_law_names_a_test_that_exists():
    text, file = (ROOT / "docs/laws.md").read_text(), ""
    found = re.findall(r"`((?:[a-z]\w*/)*test_\w+\.py)?(?:::(\w+))?`", text)
    assert len(found) > 60
    for path, name in found:
        file = path or file
        assert (ROOT / "tests" / file).is_file(), file
        assert f"def {name or 'test_'}" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
