"""Several processes on a machine without GPUs; a training of two: ../test_distributed.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from tests.conftest import ROOT, thorough_only

PROGRAM = """
import sys
from torch import distributed
IMPORT
import amn_masking.adapters.mmpretrain.runner.gloo
ready = distributed.is_initialized()
backend, ranks = (distributed.get_backend(), distributed.get_world_size()) if ready else ("none", 1)
sys.stdout.write(f"{backend} {ranks}\\n")  # in one write: two processes share the pipe
"""


def said(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()[-2:]


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "1"}, pytest.param({}, marks=thorough_only)]
)
def test_a_single_process_stays_alone(environment):
    assert said(PROGRAM.replace("IMPORT", ""), **environment) == ["none", "1"]


def test_a_process_group_that_is_there_is_left_alone():
    there = "'gloo', store=distributed.HashStore(), rank=0, world_size=1"
    own = f"distributed.init_process_group({there})"
    assert said(PROGRAM.replace("IMPORT", own), WORLD_SIZE="2") == ["gloo", "1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there mmengine starts nccl")
def test_two_processes_of_a_launcher_find_each_other(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(PROGRAM.replace("IMPORT", ""))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["gloo", "2"] * 2
