"""Links, the table of contents, and the tests that docs/laws.md names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import amn_masking
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("configs/**/*.md"), *DOCS.rglob("*.md")]
PAGES = [page for page in PAGES if "_build" not in page.parts]


def links(page: Path) -> list[str]:
    """What the links and pictures of a page point to."""
    blocks = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    inline = [token for block in blocks for token in block.children or []]
    return [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inline]


def entries(page: Path) -> set[Path]:
    """The pages in a page's tables of contents."""
    fences = re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.M | re.S)
    lines = [line for fence in fences for line in fence.splitlines()]
    names = [re.sub(r".*<(.*)>", r"\1", line) for line in lines if line and line[0] != ":"]
    return {page.parent / f"{name}.md" for name in names}


def test_every_page_is_in_the_table_of_contents():
    seen, waiting = set(), {DOCS / "index.md"}
    while waiting:
        page = waiting.pop()
        seen.add(page)
        waiting |= entries(page) - seen
    assert seen == set(DOCS.rglob("*.md")) - set((DOCS / "_build").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_point_to_files(page):
    for link in links(page):
        path = link.partition("#")[0]
        if path and not re.match(r"\w+:", path):
            assert (page.parent / path).exists(), link


def test_links_are_found():
    found = links(ROOT / "README.md")
    assert {"docs/images/front.jpg", "docs/evidence.md", "CITATION.cff"} <= set(found)


def test_the_citation_is_of_this_version():
    assert f"version: {amn_masking.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, DOCS, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for page, name in (("api/core", "amn_masking.AdversarialMasking"), ("evidence", "Price")):
        assert name in (tmp_path / f"{page}.html").read_text()


def test_every_law_names_a_test_that_exists():
    text, file = (ROOT / "docs/laws.md").read_text(), ""
    found = re.findall(r"`((?:[a-z]\w*/)*test_\w+\.py)?(?:::(\w+))?`", text)
    assert len(found) > 60
    for path, name in found:
        file = path or file
        assert (ROOT / "tests" / file).is_file(), file
        assert f"def {name or 'test_'}" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
