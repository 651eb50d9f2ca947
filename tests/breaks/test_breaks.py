"""The lists of breaks are up to date: what they would break is there, and so are their tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.breaks.breaks import BREAKS, ROOT, named_tests
from tests.breaks.subtle import SUBTLE

ALL = (*BREAKS, *SUBTLE)


@pytest.mark.parametrize("broken", ALL, ids=lambda broken: broken.what)
def test_what_is_to_be_broken_is_there_once(broken):
    assert (ROOT / broken.file).read_text().count(broken.old) == 1


@pytest.mark.slow
def test_the_tests_that_have_to_notice_exist():
    named = {f"tests/{name}" for broken in ALL for name in named_tests(broken)}
    assert not [name for name in named if not (ROOT / name.split("::")[0]).exists()]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0"]
    done = subprocess.run(
        [*command, *sorted(name for name in named if "::" in name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
