"""Pictures of every free strategy on a photograph, and what each costs.

    python -m docs.figures.strategies

Writes docs/images/strategies.jpg: a column per strategy, a row per mask ratio, on three photographs
of scikit-image. Prints the time from images to masks beside RandomMasking's, 256 images of 14 x 14
patches, median of 20 turns.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from amn_masking.strategies import (
    AdversarialMasking,
    BlockMasking,
    ColorNoiseMasking,
    MaskingStrategy,
    RandomMasking,
    RandomRatioMasking,
)
from demo.photos import photograph

PATCH, SIDE = 16, 224
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut")
RATIOS = (0.25, 0.5, 0.75)


def strategies(ratio: float) -> dict[str, MaskingStrategy]:
    """Those that need no training."""
    return {
        "RandomMasking": RandomMasking(ratio, PATCH),
        "BlockMasking": BlockMasking(ratio, PATCH),
    } | {
        f"ColorNoiseMasking\n{color}": ColorNoiseMasking(ratio, PATCH, color)
        for color in ("red", "green", "blue", "purple")
    }


def images() -> Tensor:
    """``(3, 3, 224, 224)`` in [0, 1]."""
    pictures = []
    for name in PHOTOGRAPHS:
        picture = torch.from_numpy(photograph(name)).permute(2, 0, 1).float() / 255
        top, left = (picture.shape[1] - SIDE) // 2, (picture.shape[2] - SIDE) // 2
        pictures.append(picture[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(pictures)


def draw(path: Path) -> None:
    batch = images()
    columns = len(strategies(0.5))
    figure, axes = plt.subplots(len(RATIOS), columns, figsize=(1.7 * columns, 1.75 * len(RATIOS)))
    for row, ratio in enumerate(RATIOS):
        for column, (name, strategy) in enumerate(strategies(ratio).items()):
            masked = strategy(batch, torch.Generator().manual_seed(row)).apply(batch, 0.5)
            axes[row, column].imshow(masked[row].permute(1, 2, 0))
            axes[row, column].set(xticks=[], yticks=[])
            if row == 0:
                axes[row, column].set_title(name, fontsize=8)
        axes[row, 0].set_ylabel(f"mask_ratio {ratio:g}", fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110, pil_kwargs=dict(quality=88))


def milliseconds(strategy: MaskingStrategy, batch: Tensor) -> float:
    start = time.perf_counter()
    strategy(batch)
    return 1000 * (time.perf_counter() - start)


def price() -> None:
    batch = torch.randn(256, 3, SIDE, SIDE)
    timed = strategies(0.75) | {
        "RandomRatioMasking": RandomRatioMasking(RandomMasking(patch_size=PATCH)),
        "AdversarialMasking\ndownsample 8": AdversarialMasking(
            0.75, PATCH, network=dict(downsample=8)
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in timed}
    with torch.no_grad():
        for turn in range(22):
            for name, strategy in timed.items():
                elapsed = milliseconds(strategy, batch)
                if turn > 1:
                    times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        ratio = median / medians["RandomMasking"]
        print(f"{name.replace(chr(10), ', '):32s} {median:8.2f} ms  x {ratio:.1f}")


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[2] / "docs/images/strategies.jpg"
    draw(target)
    print(f"wrote {target}")
    price()
