"""The package's scope in the OpenMMLab registries."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from amn_masking import registry, strategies
from amn_masking.adapters.mmpretrain import METHODS
from tests.conftest import ROOT

LIGHT = """
import sys
from mmengine.registry import MODELS
import amn_masking.registry
assert "mmpretrain" not in sys.modules and "torchvision" not in sys.modules
found = MODELS.get("amn_masking.MAE")
assert found is sys.modules["amn_masking.adapters.mmpretrain"].MAE
"""


def test_the_file_that_mmengine_imports_is_light_and_the_first_look_up_finds_all():
    """mmengine swallows errors of this import; those of the look-up show."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_all_parts_have_their_name_in_the_scope():
    for name in (*METHODS, *strategies.__all__, "CombinedAdversarialLoss"):
        if name != "MaskingStrategy":
            assert registry.MODELS.get(name).__module__.startswith("amn_masking")
    for name in ("MaskingPicturesHook", "MaskingMetersHook", "RandomStateHook"):
        assert registry.HOOKS.get(name).__module__.startswith("amn_masking")
