"""The workflow of a public host and make: each target is known, and what is declared is covered."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

(JOB,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
MATRIX = JOB["strategy"]["matrix"]
COMMAND = JOB["steps"][-1]["run"]
TARGETS = {*MATRIX["target"], *(more["target"] for more in MATRIX["include"])}


@pytest.mark.parametrize("targets", sorted(TARGETS))
def test_make_knows_each_target(targets):
    assert COMMAND == "make ${{ matrix.target }}"
    dry = ["make", "--dry-run", *targets.split()]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" not in done.stdout  # what make says of a phony name without a rule


def test_what_the_local_run_holds_is_held_there():
    script = (ROOT / ".ci/run").read_text()
    (local,) = re.findall(r"^for target in (.*); do$", script, re.M)
    (floor,) = re.findall(r"^floor=(\S+)", script, re.M)
    local = {target.replace("$floor", floor) for target in local.split()}
    assert local == {"test", "test-forks", "test-floor"}
    assert local <= TARGETS


def test_the_oldest_python_and_torch_are_those_of_the_package():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={MATRIX["python"][0]}"' in project
    (torch,) = re.findall(r'^dependencies = \["torch>=([\d.]+)"\]$', project, re.M)
    assert f"\ntorch=={torch}." in (ROOT / ".ci/floor.txt").read_text()


def test_the_thorough_run_holds_every_case_that_is_left_to_it():
    recipe = (ROOT / "Makefile").read_text().split("\ntest-thorough: env\n")[1].split("\n\n")[0]
    assert " -m thorough " in recipe
    files = (path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path != Path(__file__))
    with_more_cases = [path for path in files if "THOROUGH" in path.read_text()]
    assert with_more_cases
    for path in with_more_cases:
        assert "pytestmark = pytest.mark.thorough" in path.read_text(), path


@pytest.mark.xdist_group("ci")
def test_groups_of_tests_go_to_one_worker(request):
    """pytest 9.2 renamed what pytest-xdist 3.8 writes the group into, without a word."""
    if request.config.getoption("loadgroup", False):
        assert request.node.nodeid.endswith("@ci")


def test_what_make_mutants_runs_reads_only_what_its_copy_holds():
    found = re.search(
        r"also_copy = (\[.*?\]).*?test_selection = (\[.*?\])",
        (ROOT / "pyproject.toml").read_text(),
        re.DOTALL,
    )
    assert found
    copied, selected = (ast.literal_eval(part) for part in found.groups())
    files = [
        file
        for name in selected
        for file in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    assert len(files) > len(selected)
    read = {
        folder
        for file in files
        for folder in re.findall(r"ROOT\s*/\s*f?[\"']?([\w.]+)", file.read_text())
    }
    assert read <= {*copied, "amn_masking"}
