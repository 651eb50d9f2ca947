"""What is done to test pictures to see whether features bear it.

Kinds and parameters of Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (arXiv:1903.12261), about one of their five severities each, by
numpy, SciPy and Pillow; and occlusion. All take ``(N, H, W, 3)`` uint8 and give the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

PATCH = 4  # pixels on a side of what is occluded


def noise(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian, of standard deviation 0.1."""
    added = rng.standard_normal(pictures.shape, np.float32)
    return as_bytes(pictures + 25.5 * added)


def blur(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian, of standard deviation 1 pixel."""
    return as_bytes(ndimage.gaussian_filter(pictures.astype(np.float32), (0, 1, 1, 0)))


def contrast(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Three tenths of the distance from the picture's mean colour."""
    mean = pictures.mean((1, 2), keepdims=True, dtype=np.float32)
    return as_bytes(mean + 0.3 * (pictures - mean))


def jpeg(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Saved at quality 20."""
    found = np.empty_like(pictures)
    for place, picture in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=20)
        found[place] = np.asarray(Image.open(file))
    return found


def occluded(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A quarter of the patches of 4 x 4 pixels, drawn at random, in the mean colour of all."""
    count, height, width, _ = pictures.shape
    grid = height // PATCH, width // PATCH
    order = rng.random((count, grid[0] * grid[1])).argsort(1).argsort(1)
    hidden = (order < order.shape[1] // 4).reshape(count, *grid)
    hidden = hidden.repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
    colour = pictures.mean((0, 1, 2), keepdims=True)
    return np.where(hidden, as_bytes(colour), pictures)


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": noise, "blur": blur, "contrast": contrast, "jpeg": jpeg, "occluded": occluded,
}  # fmt: skip
