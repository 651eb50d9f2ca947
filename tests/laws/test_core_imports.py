"""The core imports torch and no framework; importing it is quiet and cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRAMEWORKS = ("mmengine", "mmcv", "mmpretrain", "timm", "transformers", "lightly", "matplotlib")


def frameworks_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*[m for m in {FRAMEWORKS} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_the_core_imports_no_framework():
    used = "import torch; from amn_masking import *; AdversarialMasking()(torch.zeros(1,3,32,32))"
    assert frameworks_after(used) == set()


def test_that_test_can_fail():
    pytest.importorskip("mmengine", reason="needs the extra 'mmpretrain' or 'onedl'")
    assert frameworks_after("import amn_masking, mmengine") >= {"mmengine"}


@pytest.mark.parametrize("module", ["adapters.mmpretrain", "dropin"])
def test_without_mmpretrain_the_error_says_what_to_install(module):
    code = (
        "import sys\nsys.modules['mmpretrain'] = None\n"
        f"try:\n    import amn_masking.{module}\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "pip install -e '.[mmpretrain]'" in done.stdout
    assert "[onedl]" in done.stdout


def test_without_matplotlib_drawing_says_what_to_install():
    code = (
        "import sys\nsys.modules['matplotlib'] = None\n"
        "import torch\nfrom amn_masking import RandomMasking\n"
        "from amn_masking.visualize import draw_masks\n"
        "x = torch.zeros(1, 3, 32, 32)\n"
        "try:\n    draw_masks(x, RandomMasking()(x))\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "pip install matplotlib" in done.stdout
