"""What is hidden on photographs by strategies that learn or that look at the model.

    python -m demo.over_training [NAME ...]

Trains configs/mmpretrain/mae_amn_vit-tiny_photos.py in a temporary folder, once for each strategy,
on a CPU one to three minutes each. Masks are drawn in eval mode, without exploration noise.

- ``adversarial``, at mask ratio 0.25, and ``curriculum``, from cooperative to adversarial at 0.75:
  docs/images/over_training_NAME.jpg has for each photograph the score map above the masked
  picture, a column per iteration.
- ``strategies``: docs/images/strategies_trained.jpg has the masks after 15 epochs (165 iterations),
  a column per strategy, at ratio 0.5.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import center_crop, resize

from demo.photos import photograph, write

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
CONFIG = ROOT / "configs/mmpretrain/mae_amn_vit-tiny_photos.py"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
LEARNED = dict(type="AdversarialMasking", network=dict(downsample=8))
CURRICULUM = dict(type="linear", start=-1.0, end=1.0)
OVER_TRAINING: dict[str, tuple[float, dict[str, Any]]] = {
    "adversarial": (0.25, LEARNED),
    "curriculum": (0.75, LEARNED | dict(strength=CURRICULUM)),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "AdversarialMasking": LEARNED,
    "AdversarialMasking\nstrength -1": LEARNED | dict(strength=-1.0),
    "HardPatchMasking": dict(type="HardPatchMasking", network=dict(downsample=8)),
    "AttentionMasking": dict(type="AttentionMasking"),
    "AttentionMasking\nhint_share 0.3": dict(type="AttentionMasking", hint_share=0.3),
    "ShuffledMasking\nof AdversarialMasking": dict(type="ShuffledMasking", masking=LEARNED),
    "OracleMasking": dict(type="OracleMasking"),
}

SHOWN = (0.0, 0.05, 0.25, 0.5, 1.0)  # shares of the run


def photographs(side: int) -> Tensor:
    """``(3, 3, side, side)`` in [0, 255]: the middle of each photograph."""
    pictures = [torch.from_numpy(photograph(name)).movedim(-1, 0).float() for name in PHOTOGRAPHS]
    return torch.stack(
        [resize(center_crop(p, min(p.shape[-2:])), [side, side], antialias=True) for p in pictures]
    )


class Watch(Hook):
    """Keeps the score maps and the masked pictures at some iterations.

    Args:
        pictures: ``(B, 3, H, W)`` in [0, 255].
    """

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures
        self.seen: dict[int, tuple[Tensor | None, Tensor]] = {}

    def before_train(self, runner: Runner) -> None:
        self.look(runner, 0)

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        if runner.iter + 1 in {round(share * runner.max_iters) for share in SHOWN}:
            self.look(runner, runner.iter + 1)

    @torch.no_grad()
    def look(self, runner: Runner, iteration: int) -> None:
        model = runner.model
        state = torch.get_rng_state()  # ties are broken at random; the run must not notice
        model.eval()
        normalised = (self.pictures - model.data_preprocessor.mean) / model.data_preprocessor.std
        patch_mask = model.make_mask(normalised)
        model.train()
        torch.set_rng_state(state)
        scores = None
        if patch_mask.learned is not None:
            scores = F.adaptive_avg_pool2d(patch_mask.learned.score_map, patch_mask.grid)[:, 0]
        self.seen[iteration] = scores, patch_mask.apply(self.pictures, 128.0)


def train(
    masking: dict[str, Any], ratio: float, epochs: int, folder: Path, pictures: Tensor
) -> dict[int, tuple[Tensor | None, Tensor]]:
    """Train with a strategy; score maps and masked pictures by iteration."""
    config = Config.fromfile(CONFIG)
    config.model.backbone.mask_ratio = ratio
    config.model.masking = masking
    config.train_cfg.max_epochs = epochs
    cosine = config.param_scheduler[1]
    cosine.update(T_max=epochs - cosine.begin, end=epochs)
    config.train_dataloader.dataset.data_root = str(folder / "photos")
    config.work_dir = tempfile.mkdtemp(dir=folder)
    config.experiment_name = Path(config.work_dir).name  # mmengine keeps its loggers by name
    config.default_hooks.checkpoint = None
    config.custom_hooks = []
    config.log_level = "ERROR"
    runner = Runner.from_cfg(config)
    watch = Watch(pictures)
    runner.register_hook(watch)
    runner.train()
    return watch.seen


def draw_over_training(
    seen: dict[int, tuple[Tensor | None, Tensor]], pictures: Tensor, path: Path
) -> None:
    """A column per iteration, two rows per photograph."""
    rows, columns = 2 * len(pictures), len(seen) + 1
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.55 * rows))
    for column, (iteration, (scores, masked)) in enumerate(sorted(seen.items()), 1):
        axes[0, column].set_title(f"iteration {iteration}", fontsize=9)
        for row, (score, picture) in enumerate(zip(scores, masked, strict=True)):
            axes[2 * row, column].imshow(score, cmap="inferno", interpolation="nearest")
            axes[2 * row + 1, column].imshow(picture.movedim(0, -1) / 255)
    show_photographs(axes[::2, 0], pictures)
    save(figure, path)


def draw_strategies(masked: dict[str, Tensor], pictures: Tensor, path: Path) -> None:
    """A column per strategy, a row per photograph."""
    rows, columns = len(pictures), len(masked) + 1
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.7 * rows))
    for column, (name, batch) in enumerate(masked.items(), 1):
        axes[0, column].set_title(name, fontsize=8)
        for row, picture in enumerate(batch):
            axes[row, column].imshow(picture.movedim(0, -1) / 255)
    show_photographs(axes[:, 0], pictures)
    save(figure, path)


def show_photographs(axes: np.ndarray, pictures: Tensor) -> None:
    axes[0].set_title("photograph", fontsize=9)
    for ax, picture in zip(axes, pictures, strict=True):
        ax.imshow(picture.movedim(0, -1).clamp(0, 255) / 255)


def save(figure: Figure, path: Path) -> None:
    for ax in figure.axes:
        ax.set_axis_off()
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100, pil_kwargs=dict(quality=88))
    plt.close(figure)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What is hidden on photographs.")
    names = (*OVER_TRAINING, "strategies")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all")
    wanted = parser.parse_args().names or names
    if unknown := set(wanted) - set(names):
        parser.error(f"unknown {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
    pictures = photographs(int(Config.fromfile(CONFIG).img_size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "photos")
        for run, (ratio, masking) in OVER_TRAINING.items():
            if run in wanted:
                seen = train(masking, ratio, 40, folder, pictures)
                draw_over_training(seen, pictures, IMAGES / f"over_training_{run}.jpg")
        if "strategies" in wanted:
            masked = {}
            for strategy, masking in STRATEGIES.items():
                seen = train(masking, 0.5, 15, folder, pictures)
                masked[strategy] = seen[max(seen)][1]
            draw_strategies(masked, pictures, IMAGES / "strategies_trained.jpg")


if __name__ == "__main__":
    main()
