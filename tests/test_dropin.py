"""mmpretrain's own names with ``masking=``, by an import."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from tests.conftest import ROOT

PROGRAM = """
import torch
from mmpretrain.models import selfsup
from mmpretrain.registry import MODELS
from tests.helpers import small_mae

stock = {name: MODELS.get(name) for name in vars(selfsup) if MODELS.get(name)}
one, gradients = small_mae.step(small_mae.build("MAE"))
import amn_masking.dropin
from amn_masking.adapters.mmpretrain import METHODS
assert len(METHODS) == 11
for name, before in stock.items():
    now = MODELS.get(name)
    assert now is METHODS.get(name, before), name
    assert issubclass(now, before), name
other, same = small_mae.step(small_mae.build("MAE"))
assert torch.equal(one["loss"], other["loss"]) and one.keys() == other.keys()
assert all(torch.equal(gradients[name], same[name]) for name in gradients)
learned, gradients = small_mae.step(small_mae.build("MAE", masking=dict(type="AdversarialMasking")))
assert any(name.startswith("masking") for name in gradients)
"""


def test_the_stock_names_accept_masking_and_are_stock_without_it():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
