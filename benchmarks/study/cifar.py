"""CIFAR-10 for the study: from a folder of pictures or by torchvision, decoded once.

Tuning seeds never see the test set: they train on four fifths of the training set and are tested on
the last fifth. Report seeds train on the training set and are tested on the test set.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CIFAR10, ImageFolder

from benchmarks.study.corruptions import CORRUPTIONS
from benchmarks.study.data import Data, Images, split_of
from benchmarks.study.settings import PhotoRecipe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "AMN_STUDY_IMAGES"  # environment variable: where --data points to, for worker processes
CACHE = ROOT / "data/study"  # git ignores it
SIDE, MARGIN = 32, 4
SPLITS = ("train", "test")

Pictures = tuple[np.ndarray, np.ndarray]  # (N, 32, 32, 3) uint8 and (N,) int64 labels


def load(recipe: PhotoRecipe, seed: int, device: str = "cpu") -> Data:
    """The pictures of one seed. Not to be changed in place."""
    wanted = recipe.images, recipe.queries
    known, queries = (len(labels) for _, labels in parts(split_of(seed)))
    # Where all of them are wanted, the seeds of a split share them.
    drawn_by = seed if wanted[0] < known or wanted[1] < queries else None
    return chosen(split_of(seed), *wanted, drawn_by, device)


@lru_cache(maxsize=1)
def chosen(split: str, images: int, queries: int, seed: int | None, device: str) -> Data:
    """Of the training and test pictures of a split so many, drawn by ``seed``; at most all."""
    rng = np.random.default_rng([4, 0 if seed is None else seed])
    train, test = (
        some(part, count, rng) for part, count in zip(parts(split), (images, queries), strict=True)
    )
    pixels = as_pixels(train[0])
    mean = pixels.mean((0, 2, 3), keepdim=True)
    deviation = pixels.std((0, 2, 3), keepdim=True)

    def normalised(pictures: np.ndarray) -> Tensor:
        return ((as_pixels(pictures) - mean) / deviation).to(device)

    def with_margin(part: Pictures) -> Images:
        pixels = F.pad(normalised(part[0]), [MARGIN] * 4, mode="reflect")
        return Images(pixels, part[1], margin=MARGIN, mirrored=True)

    disturbed = {}
    if split == "report":
        for index, (name, disturb) in enumerate(CORRUPTIONS.items()):
            disturbed[name] = normalised(disturb(test[0], np.random.default_rng([5, index])))
    source = "folder of pictures" if os.environ.get(FOLDER) else "torchvision"
    return Data(with_margin(train), with_margin(test), None, disturbed, source)


def as_pixels(pictures: np.ndarray) -> Tensor:
    """``(N, H, W, 3)`` uint8 to ``(N, 3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 255


def some(part: Pictures, count: int, rng: np.random.Generator) -> Pictures:
    """At most ``count`` of the pictures, in an order of their own, classes in equal shares as far
    as they go.
    """
    pictures, labels = part
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    # One of each class in turn.
    turns = np.concatenate([np.stack([np.arange(len(m)), m]) for m in members], axis=1)
    ids = turns[1][np.argsort(turns[0], kind="stable")][:count]
    ids = rng.permutation(ids)
    return pictures[ids], labels[ids]


@lru_cache(maxsize=2)
def parts(split: str) -> tuple[Pictures, Pictures]:
    """What to train on and what to test on, for ``'tune'`` or ``'report'``."""
    train = pictures(os.environ.get(FOLDER), "train")
    if split == "report":
        return train, pictures(os.environ.get(FOLDER), "test")
    halves = np.random.default_rng(0)
    known, held = [], []
    for label in np.unique(train[1]):
        members = halves.permutation(np.flatnonzero(train[1] == label))
        cut = len(members) // 5
        held.append(members[:cut])
        known.append(members[cut:])
    ids = np.concatenate(known), np.concatenate(held)
    return (train[0][ids[0]], train[1][ids[0]]), (train[0][ids[1]], train[1][ids[1]])


def pictures(folder: str | None, split: str) -> Pictures:
    """The training or the test set, in the order of their files.

    Args:
        folder: with ``train/CLASS/FILE`` and ``test/CLASS/FILE``; None: torchvision's CIFAR-10,
            which needs a network the first time.
        split: ``'train'`` or ``'test'``.

    Raises:
        ValueError: no such folder, or pictures that are not 32 x 32.
    """
    if folder is None:
        data = CIFAR10(str(CACHE), train=split == "train", download=True)
        return data.data, np.array(data.targets, np.int64)
    place = Path(folder).resolve() / split
    if not place.is_dir():
        raise ValueError(
            f"expected a folder with {'/CLASS/FILE and '.join(SPLITS)}/CLASS/FILE, got {folder}, "
            f"which has no {split}; leave --data out to let torchvision fetch CIFAR-10"
        )
    # A class that changes has another time, and so another file in the cache.
    stamp = [str(place)] + [f"{c.name} {c.stat().st_mtime_ns}" for c in sorted(place.iterdir())]
    cache = CACHE / f"{split}-{hashlib.sha256(repr(stamp).encode()).hexdigest()[:16]}.npz"
    if not cache.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        decoded = decode(place)
        partial = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, pictures=decoded[0], labels=decoded[1])
        partial.replace(cache)  # at once: several processes may begin together
    with np.load(cache) as stored:
        return stored["pictures"], stored["labels"]


def decode(place: Path) -> Pictures:
    """All pictures of ``CLASS/FILE``."""
    samples = ImageFolder(str(place)).samples

    def read(sample: tuple[str, int]) -> np.ndarray:
        with Image.open(sample[0]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if pixels.shape != (SIDE, SIDE, 3):
            raise ValueError(
                f"expected pictures of {SIDE} x {SIDE} pixels, got {pixels.shape[1]} x "
                f"{pixels.shape[0]} in {sample[0]}"
            )
        return pixels

    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(read, samples, chunksize=256))
    return np.stack(decoded), np.array([label for _, label in samples], np.int64)
