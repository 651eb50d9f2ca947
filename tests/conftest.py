"""Hypothesis profiles, and the photographs that the process tests train on."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, register_random, settings

ROOT = Path(__file__).resolve().parents[1]

COMMON = dict(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("dev", max_examples=50, **COMMON)
settings.register_profile("ci", max_examples=25, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=250, **COMMON)
settings.register_profile("floor", max_examples=5, derandomize=True, **COMMON)
settings.register_profile("mutants", max_examples=15, derandomize=True, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# What make test leaves to make test-thorough: that a costly test can fail, further seeds and cases.
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
thorough_only = pytest.mark.thorough_only

# There a group of two that ends may wait for ever for the one that has gone (seen with 2.1.2).
groups_end = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 3),
    reason="process groups of torch before 2.3 may hang when they end",
)

# The models here are tiny, two workers share two cores, and a pool of threads does not survive the
# forks of make mutants. Processes that tests start get the same.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


class TorchRandom:
    """torch's global generator, as Hypothesis wants it: seeded anew for every example, so that a
    reported failure happens again.
    """

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()
register_random(TORCH_RANDOM)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# Fixtures that take long: of two workers one makes each, for all tests that ask for it.
COSTLY = ("pretrained", "built", "site", "trained", "found")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups and pytest -m the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("thorough_only"):
            item.add_marker("thorough")
            if not THOROUGH:
                item.add_marker(pytest.mark.skip(reason="make test-thorough runs it"))
        for name in COSTLY:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))
                break


def pytest_collection_finish() -> None:
    """mmengine collects garbage whenever it builds a dataset: a second if it walks all modules and
    tests, which stay anyway.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or extensions count what is left at the end as leaks, and print it


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ImageNet-style folder of real photographs: 42 training images."""
    root = tmp_path_factory.mktemp("data") / "photos"
    command = [sys.executable, ROOT / "demo/photos.py", root]
    subprocess.run([*command, "--train-crops", "3", "--val-crops", "1"], check=True)
    return root


@pytest.fixture
def photos_config(photos: Path, tmp_path: Path):
    """The shipped config for photographs at 64 pixels and one block, for the Runner in here."""
    from mmengine.config import Config

    cfg = Config.fromfile(ROOT / "configs/mmpretrain/mae_amn_vit-tiny_photos.py")
    cfg.model.backbone.update(img_size=64)
    cfg.model.backbone.arch = dict(
        embed_dims=48, num_layers=1, num_heads=2, feedforward_channels=96
    )
    cfg.model.neck.update(
        num_patches=16, embed_dim=48, decoder_embed_dim=32, decoder_num_heads=2, decoder_depth=1
    )
    cfg.train_dataloader.update(batch_size=14, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset.data_root = str(photos)
    cfg.train_dataloader.dataset.pipeline[1].scale = 64
    cfg.train_cfg.max_epochs = 2
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(tmp_path)
    return cfg


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, photos) -> Path:
    """The checkpoint of one epoch of the shipped pre-training, by the real ``mim train``."""
    from tests.helpers.downstream import PIXELS
    from tests.helpers.mim import PHOTOS_CONFIG, TINY, data_options, mim_train

    work_dir = tmp_path_factory.mktemp("pretrained")
    crop = {"train_dataloader.dataset.pipeline.1.scale": PIXELS}
    mim_train(PHOTOS_CONFIG, work_dir, TINY | data_options(photos) | crop)
    return work_dir / "epoch_1.pth"


@pytest.fixture(scope="session")
def exported(tmp_path_factory, pretrained) -> Path:
    """The encoder of that checkpoint, for mmpretrain."""
    from amn_masking.tools.export import export

    out = tmp_path_factory.mktemp("exported") / "encoder.pth"
    export(pretrained, "mmpretrain", out)
    return out
