"""The downstream configs at the size of the tests' pre-training."""

from __future__ import annotations

from pathlib import Path

BENCHMARKS = "configs/mmpretrain/benchmarks"
LINEAR = f"{BENCHMARKS}/vit-tiny_linear_photos.py"
PIXELS = 64


def small(photos: Path) -> dict:
    """The options that bring a benchmark to the size of the tests' pre-training."""
    options = {"model.backbone.img_size": PIXELS, "train_dataloader.batch_size": 14}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        options |= {
            f"{loader}.dataset.data_root": photos,
            f"{loader}.dataset.pipeline.1.scale": PIXELS,
            f"{loader}.num_workers": 0,
            f"{loader}.persistent_workers": False,
        }
    return options
