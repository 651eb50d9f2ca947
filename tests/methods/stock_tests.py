"""mmpretrain's own self-supervised tests, with this package's classes in the place of its own.

    python -m tests.methods.stock_tests CHECKOUT [RandomMasking | AdversarialMasking]

CHECKOUT is a clone of mmpretrain, whose ``tests/test_models/test_selfsup`` is run on the installed
mmpretrain. Without a second argument ``masking`` stays None and every test has to pass; with one,
each method is given that strategy, and the tests of methods are run (not those of backbones, which
take no ``masking``).
"""

from __future__ import annotations

import sys
from functools import partialmethod
from pathlib import Path

import mmpretrain.models
import pytest
from mmpretrain.models import selfsup

from amn_masking.adapters.mmpretrain import METHODS


def main(checkout: str, kind: str | None = None) -> int:
    tests = Path(checkout) / "tests/test_models/test_selfsup"
    if not tests.is_dir():
        raise SystemExit(f"expected {tests}, a clone of mmpretrain, found no such folder")
    for name, method in METHODS.items():
        cls = type(name, (method,), {})
        if kind is not None:
            cls.__init__ = partialmethod(method.__init__, masking=dict(type=kind))
        for module in (mmpretrain.models, selfsup):
            setattr(module, name, cls)
    files = {path.stem[5:].lower(): str(path) for path in sorted(tests.glob("test_*.py"))}
    names = sorted(name.lower() for name in METHODS)
    if missing := [name for name in names if name not in files]:
        raise SystemExit(f"expected a test of each method in {tests}, found none of {missing}")
    # Both this project's tests and the clone's are a package of that name.
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    chosen = [] if kind is None else ["-k", "not vit and not swin and not backbone"]
    return int(pytest.main([*options, *(files[name] for name in names), *chosen]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
