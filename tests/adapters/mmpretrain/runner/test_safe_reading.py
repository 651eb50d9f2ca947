"""Local checkpoints into any model, by an import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.logging import HistoryBuffer

from amn_masking.adapters.mmpretrain.runner.resume import load_from_local
from tests.conftest import ROOT


@pytest.mark.slow
def test_an_import_in_a_config_is_enough_to_read_checkpoints_into_any_model(tmp_path):
    """What the downstream configs do, in a fresh process."""
    path = tmp_path / "epoch_1.pth"
    hub = dict(log_scalars={"loss": HistoryBuffer([0.5], [1])})  # which torch refuses by itself
    torch.save(dict(state_dict={"w": torch.ones(2)}, message_hub=hub), path)
    program = (
        "import amn_masking.adapters.mmpretrain.runner.safe_reading\n"
        "from mmengine.runner import CheckpointLoader\n"
        f"checkpoint = CheckpointLoader.load_checkpoint({str(path)!r}, 'cpu')\n"
        "assert checkpoint['message_hub']['log_scalars']['loss'].current() == 0.5\n"
        "print(CheckpointLoader._get_checkpoint_loader('x.pth').__module__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == load_from_local.__module__
