"""Images taken out of a training, to measure on."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from amn_masking.adapters.mmpretrain.runner.pictures_hook import same_random_numbers


def hold_out(cfg: Any, images: int) -> tuple[int, list[Any]]:
    """Take about so many images out of a config's training, in place.

    Args:
        cfg: mmengine ``Config`` of a pre-training.
        images: how many, nearly: they are one of equal parts.

    Returns:
        The number of all images, and the held-out ones in batches as the training sees them, each
        cropped once.

    Raises:
        ValueError: no training, fewer than twice the images, or a dataset that cannot be split.
    """
    loader = cfg.get("train_dataloader")
    if not loader:
        raise ValueError("expected a config of a training, with a train_dataloader, got none")
    dataset = loader.dataset
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        count = len(DATASETS.build(dataset))
        if not 1 <= images <= count // 2:
            raise ValueError(
                f"{images} images to hold out expected at most half of the training images, of "
                f"which there are {count}; set --images"
            )
        parts = max(2, round(count / images))
        fold = dict(type="KFoldDataset", dataset=dataset, num_splits=parts, seed=0)
        loader.dataset = fold
        once = deepcopy(loader)
        once.update(
            num_workers=0, persistent_workers=False, drop_last=False,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset={**fold, "test_mode": True},
        )  # fmt: skip
        for name in ("batch_sampler", "prefetch_factor"):
            once.pop(name, None)
        try:
            with same_random_numbers(seed=0):
                return count, list(Runner.build_dataloader(once))
        except (NotImplementedError, TypeError, AttributeError) as error:
            raise ValueError(
                f"a dataset of type {dataset.get('type')!r} cannot be split into images to "
                f"train on and to hold out ({error}); give the dataset within it"
            ) from error
