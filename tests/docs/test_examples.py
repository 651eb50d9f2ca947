"""The examples of the docs, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, thorough_only

EXAMPLES = {path.stem: path for path in sorted((ROOT / "docs/examples").glob("*.py"))}
NEEDS = {
    "huggingface_mim": "transformers",
    "huggingface_pretrain": "transformers",
    "huggingface_videomae": "transformers",
    "lightly_pretrain": "lightly",
    "monai_pretrain": "monai",
    "timm_pretrain": "timm",
    "reference_mae_pretrain": "timm",
}


# make examples runs all, each with its own extra alone; this one needs the least.
IN_CI = ("timm_pretrain",)


def test_it_is_known_what_each_needs():
    assert set(IN_CI) < set(EXAMPLES)
    assert set(EXAMPLES) == set(NEEDS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_at_most_40_lines(name):
    assert sum(bool(line.strip()) for line in EXAMPLES[name].read_text().splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in IN_CI else pytest.param(name, marks=thorough_only) for name in EXAMPLES],
)
def test_ends_with_masks_that_are_harder_than_random(name, tmp_path, photos):
    pytest.importorskip(NEEDS[name])
    done = subprocess.run(
        [sys.executable, str(EXAMPLES[name]), str(photos)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.findall(r"adversarial gain ([\d.]+)", done.stdout)[-1]) > 1
    if name == "timm_pretrain":
        import timm
        from safetensors.torch import load_file

        shape = dict(img_size=64, patch_size=8, depth=4, num_classes=0)
        encoder = timm.create_model("vit_tiny_patch16_224", **shape)
        encoder.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
