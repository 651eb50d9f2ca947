"""Each public name has an example in its docstring, and the examples say what comes out."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest

import amn_masking
from amn_masking import estimators, strategies, thresholds

WITHOUT = {
    # Abstract, or for reading only: shown on docs/extending.md.
    "Candidates", "Selection", "Threshold", "Estimator", "ESTIMATORS", "THRESHOLDS",
    "OracleMasking",  # asks a model in training
}  # fmt: skip
MODULES = ("learned", "meters", "patches", "schedules", "visualize")
PUBLIC = {
    name: getattr(package, name)
    for package in (amn_masking, strategies, thresholds, estimators)
    for name in package.__all__
    if name not in WITHOUT
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_runs(name):
    value = PUBLIC[name]
    names = dict(vars(inspect.getmodule(value)))
    (example,) = doctest.DocTestFinder(recurse=False).find(value, name, globs=names)
    assert example.examples, f"{name} has no >>> in its docstring"
    run(example)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module):
    found = importlib.import_module(f"amn_masking.{module}")
    examples = [test for test in doctest.DocTestFinder().find(found) if test.examples]
    assert examples
    for example in examples:
        run(example)


def run(example: doctest.DocTest) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    lines: list[str] = []
    assert runner.run(example, out=lines.append).failed == 0, "".join(lines)
