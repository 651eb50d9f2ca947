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
    names = {"itpn": "itpn", **{name.lower(): name for name in METHODS}}
    files = [path for path in tests.glob("test_*.py") if path.stem[5:].lower() in names]
    chosen = [] if kind is None else ["-k", "not vit and not Vit and not transformer"]
    return int(pytest.main(["-q", "-p", "no:cacheprovider", *map(str, sorted(files)), *chosen]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
