"""What make demo runs, at the least size: quiet, and ending with what was learned."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.report import first_and_last
from tests.conftest import ROOT
from tests.helpers.mim import PHOTOS_CONFIG

SMALL = {
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
    "train_dataloader.batch_size": 14,
    "train_cfg.max_epochs": 2,
    "default_hooks.checkpoint.interval": 1,
    "default_hooks.logger.interval": 1,
    "custom_hooks.1.interval": 1,
}


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_line_per_epoch_then_what_was_learned(tmp_path, photos):
    options = SMALL | {"train_dataloader.dataset.data_root": photos}
    changes = [f"{name}={value}" for name, value in options.items()]
    log = run("demo/train.py", PHOTOS_CONFIG, tmp_path, "--cfg-options", *changes)
    lines = log.strip().splitlines()
    assert [line[:11] for line in lines] == ["epoch   1/2", "epoch   2/2"], log
    assert all("adversarial gain" in line for line in lines)

    report = run("demo/report.py", tmp_path, "--data", photos)
    before, after = re.search(r"random masks ([\d.]+) before, ([\d.]+) after", report).groups()
    assert float(after) < float(before)
    assert 0 < float(re.search(r"([\d.]+) times as hard", report)[1]) < 2
    assert re.search(r"accuracy [\d.]+ untrained, [\d.]+ trained", report)
    assert Path(re.search(r"look at +(\S+)", report)[1]).is_file()


def test_values_that_the_log_repeats_are_one_measurement():
    rows = [dict(gain=value) for value in (1.0, 1.0, 2.0, 2.0, 4.0, 3.0)]
    assert first_and_last([{}, *rows], "gain") == (1.0, 3.0)
