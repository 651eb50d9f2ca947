"""The drawing of docs/concepts.md: from an image to a mask and back.

    python -m docs.figures.concepts

Writes docs/images/concepts.svg. The scores are those of an untrained network's stand-in, the local
contrast of a photograph, so that the drawing needs no training.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch
from skimage import data
from torch.nn import functional

from amn_masking import PatchMask
from amn_masking.patches import pool_to_patches, spread_to_pixels

PATH = Path(__file__).resolve().parents[1] / "images/concepts.svg"
SIDE, PATCH, RATIO = 256, 32, 0.25
FORWARD, BACKWARD = "#1f4e79", "#b3402a"
LEFTS = (0.01, 0.22, 0.43, 0.64, 0.85)
FORWARD_STEPS = ("network", "mean", "threshold", "hide")
NOTES = (
    "",
    "0 to 1 at each pixel",
    "outlined: above the\nthreshold of this image",
    "1 = masked",
    "",
)
BACKWARD_STEPS = (
    "",
    "the network learns",
    "surrogate: gradient\nof the scores",
    "sign reversed",
    "error of each\nmasked patch",
)
WIDTH, BOTTOM, HEIGHT = 0.14, 0.40, 0.46


def picture() -> torch.Tensor:
    """``(1, 3, SIDE, SIDE)`` in [0, 1]: the cat's face."""
    crop = torch.tensor(data.chelsea()[20:276, 70:326]).movedim(2, 0) / 255
    return crop[None]


def contrast(image: torch.Tensor) -> torch.Tensor:
    """``(1, 1, SIDE, SIDE)`` in [0, 1]: the standard deviation around each pixel."""
    grey = image.mean(1, keepdim=True)
    grey = functional.pad(grey, (8, 8, 8, 8), mode="reflect")
    mean, square = (functional.avg_pool2d(values, 17, 1) for values in (grey, grey.square()))
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return deviation / deviation.max()


def arrow(figure: plt.Figure, start: float, end: float, height: float, color: str) -> None:
    figure.add_artist(
        FancyArrowPatch(
            (start, height),
            (end, height),
            arrowstyle="-|>",
            mutation_scale=14,
            color=color,
            linewidth=1.6,
            transform=figure.transFigure,
        )
    )


def draw() -> plt.Figure:
    image = picture()
    scores = contrast(image)
    grid = (SIDE // PATCH, SIDE // PATCH)
    patch_scores = pool_to_patches(scores, grid)
    count = round(RATIO * patch_scores.shape[1])
    threshold = patch_scores.sort(descending=True).values[0, count - 1 : count + 1].mean()
    patch_mask = PatchMask.from_mask(patch_scores > threshold, grid)
    shown = spread_to_pixels(patch_scores, grid, SIDE, SIDE)[0, 0]

    figure = plt.figure(figsize=(11, 3.6))
    axes: list[Axes] = [figure.add_axes((left, BOTTOM, WIDTH, HEIGHT)) for left in LEFTS]
    axes[0].imshow(image[0].movedim(0, 2))
    axes[1].imshow(scores[0, 0], cmap="inferno")
    axes[2].imshow(shown, cmap="inferno")
    for row, column in [divmod(patch, grid[1]) for patch in range(patch_scores.shape[1])]:
        if patch_mask.mask[0, row * grid[1] + column]:
            corner = (column * PATCH - 0.5, row * PATCH - 0.5)
            axes[2].add_patch(
                plt.Rectangle(corner, PATCH, PATCH, fill=False, color="#7fd6ff", linewidth=1.4)
            )
    axes[3].imshow(patch_mask.mask.reshape(grid), cmap="gray_r", vmin=0, vmax=1)
    axes[4].imshow(patch_mask.apply(image, 1.0)[0].movedim(0, 2))
    titles = ("image", "score map", "patch scores", "mask", "autoencoder's input")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=11)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_color("#999999")

    for left, right, way in zip(LEFTS, LEFTS[1:], FORWARD_STEPS, strict=False):
        middle = (left + WIDTH + right) / 2
        arrow(figure, left + WIDTH + 0.006, right - 0.006, BOTTOM + HEIGHT / 2, FORWARD)
        figure.text(middle, BOTTOM + HEIGHT / 2 + 0.04, way, ha="center", fontsize=9, color=FORWARD)
    arrow(figure, LEFTS[-1] + WIDTH, LEFTS[0] + WIDTH, 0.2, BACKWARD)
    for left, note, back in zip(LEFTS, NOTES, BACKWARD_STEPS, strict=True):
        middle = left + WIDTH / 2
        figure.text(middle, 0.37, note, ha="center", va="top", fontsize=9, color="#444444")
        figure.text(middle, 0.16, back, ha="center", va="top", fontsize=9, color=BACKWARD)
    return figure


def main() -> None:
    # Text stays text, and the file is the same each time.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "amn_masking"}):
        draw().savefig(PATH, metadata={"Date": None})
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
