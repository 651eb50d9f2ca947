"""What the masking network hides on photographs, as training goes on.

    python -m benchmarks.over_training

Trains configs/mmpretrain/mae_amn_vit-tiny_photos.py twice, in a temporary folder: as it is, which
is adversarial at mask ratio 0.25, and from cooperative to adversarial at 0.75. Writes
docs/images/over_training_adversarial.jpg and docs/images/over_training_curriculum.jpg: for each
photograph the score map above the masked picture, a column per iteration. Masks are drawn in eval
mode, without exploration noise.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import center_crop, resize

from benchmarks.photos import photograph, write

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/mmpretrain/mae_amn_vit-tiny_photos.py"
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
RUNS: dict[str, tuple[float, Any]] = {
    "adversarial": (0.25, 1.0),
    "curriculum": (0.75, dict(type="linear", start=-1.0, end=1.0)),
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
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

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
        h, w = patch_mask.grid
        scores = F.adaptive_avg_pool2d(patch_mask.score_map, (h, w))[:, 0]
        self.seen[iteration] = scores, patch_mask.apply(self.pictures, 128.0)


def train(name: str, folder: Path, pictures: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """One of ``RUNS``; score maps and masked pictures by iteration."""
    config = Config.fromfile(CONFIG)
    ratio, strength = RUNS[name]
    config.model.backbone.mask_ratio = ratio
    config.model.masking.strength = strength
    config.train_dataloader.dataset.data_root = str(folder / "photos")
    config.work_dir = str(folder / name)
    config.experiment_name = name
    config.default_hooks.checkpoint = None
    config.custom_hooks = []
    config.log_level = "ERROR"
    runner = Runner.from_cfg(config)
    watch = Watch(pictures)
    runner.register_hook(watch)
    runner.train()
    return watch.seen


def draw(seen: dict[int, tuple[Tensor, Tensor]], pictures: Tensor, path: Path) -> None:
    """A column per iteration, two rows per photograph."""
    rows, columns = 2 * len(pictures), len(seen) + 1
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.55 * rows))
    for column, (iteration, (scores, masked)) in enumerate(sorted(seen.items()), 1):
        axes[0, column].set_title(f"iteration {iteration}", fontsize=9)
        for row, (score, picture) in enumerate(zip(scores, masked, strict=True)):
            axes[2 * row, column].imshow(score, cmap="inferno", interpolation="nearest")
            axes[2 * row + 1, column].imshow(picture.movedim(0, -1) / 255)
    axes[0, 0].set_title("photograph", fontsize=9)
    for row, picture in enumerate(pictures):
        axes[2 * row, 0].imshow(picture.movedim(0, -1).clamp(0, 255) / 255)
    for ax in axes.flat:
        ax.set_axis_off()
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100, pil_kwargs=dict(quality=88))
    plt.close(figure)


def main() -> None:
    pictures = photographs(int(Config.fromfile(CONFIG).img_size))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "photos")
        for name in RUNS:
            path = ROOT / f"docs/images/over_training_{name}.jpg"
            draw(train(name, Path(folder), pictures), pictures, path)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
