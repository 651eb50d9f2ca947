"""The picture of docs/prediction_ratio.md: what is seen, predicted and left out.

    python -m docs.figures.three_sets

Trains the small masked autoencoder of README's picture, on the same photographs, with half of the
patches seen and a quarter predicted, for about four minutes on one CPU core, and writes
docs/images/three_sets.png.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torchvision.transforms.functional import resize

from amn_masking.patches import unpatchify
from amn_masking.visualize import draw_masks
from docs.figures.front import SIZE, STEPS, photographs, train

PATH = Path(__file__).resolve().parents[1] / "images/three_sets.png"


@torch.no_grad()
def main() -> None:
    photos = photographs()
    with torch.enable_grad():
        model, masks = train(photos, mask_ratio=0.5, prediction_ratio=0.25)
    whole = torch.stack([resize(photo, SIZE, antialias=True) for photo in photos])
    mask = masks[STEPS]
    pred = unpatchify(model.predict(whole - 0.5, mask), model.patch_size, mask.grid)
    picture = draw_masks(whole, mask, pred + 0.5, dpi=110)
    plt.imsave(PATH, picture)
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
