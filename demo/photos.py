"""Write scikit-image's bundled photographs as an ImageNet-style folder of image files.

    python demo/photos.py data/photos

Each photograph is a class. It is cut into overlapping square crops; crops of its right quarter
are the validation set, and no pixel of it is in the training set. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from skimage import data
from skimage.color import gray2rgb
from skimage.transform import resize

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "moon", "retina", "rocket", "stereo_motorcycle",
)  # fmt: skip
SIZE = 256


def photograph(name: str) -> np.ndarray:
    """``(H, W, 3)`` uint8, the shorter side resized to 384 pixels."""
    picture = getattr(data, name)()
    if isinstance(picture, tuple):  # the stereo pair: its left photograph
        picture = picture[0]
    picture = gray2rgb(picture) if picture.ndim == 2 else picture[..., :3]
    scale = 384 / min(picture.shape[:2])
    height, width = (round(side * scale) for side in picture.shape[:2])
    resized = resize(picture, (height, width), anti_aliasing=scale < 1, preserve_range=True)
    return resized.round().clip(0, 255).astype(np.uint8)


def crops(picture: np.ndarray, count: int, size: int, seed: int) -> list[np.ndarray]:
    """``count`` square crops at positions drawn from ``seed``."""
    generator = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    size = min(size, height, width)
    tops = generator.integers(0, height - size + 1, count)
    lefts = generator.integers(0, width - size + 1, count)
    return [picture[y : y + size, x : x + size] for y, x in zip(tops, lefts, strict=True)]


def write(root: Path, train_crops: int = 24, val_crops: int = 4) -> int:
    """Write the folder; the number of image files."""
    total = 0
    for name in PHOTOGRAPHS:
        picture = photograph(name)
        edge = picture.shape[1] * 3 // 4
        for split, part, count, seed in (
            ("train", picture[:, :edge], train_crops, 0),
            ("val", picture[:, edge:], val_crops, 1),
        ):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index, crop in enumerate(crops(part, count, SIZE, seed)):
                iio.imwrite(folder / f"{index:03d}.jpg", crop, quality=92)
                total += 1
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--train-crops", type=int, default=24, help="per photograph")
    parser.add_argument("--val-crops", type=int, default=4, help="per photograph")
    args = parser.parse_args()
    if (args.root / "train").exists():
        print(f"{args.root} is there already; remove it to write it anew")
        return
    # Written beside its place and moved, so that a broken run leaves no half folder.
    partial = args.root.with_name(args.root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    total = write(partial, args.train_crops, args.val_crops)
    args.root.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(args.root)
    print(f"wrote {total} images of {len(PHOTOGRAPHS)} photographs to {args.root}")


if __name__ == "__main__":
    sys.exit(main())
