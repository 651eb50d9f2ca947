"""The picture at the top of README: photographs, masks and reconstructions.

    python -m docs.figures.front

Trains a small masked autoencoder with an adversary for about four minutes on one CPU core, on crops
of three photographs of scikit-image, and writes docs/images/front.jpg. The photographs shown are
the ones that it was trained on. Masks are drawn in eval mode, without exploration noise.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from matplotlib import pyplot as plt
from skimage import data
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resize

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.adapters.timm import MaskedAutoencoder
from amn_masking.meters import adversarial_gain
from amn_masking.patches import unpatchify

PATH = Path(__file__).resolve().parents[1] / "images/front.jpg"
SIZE, PATCH, RATIO = (64, 96), 8, 0.25
STEPS, EARLY, BATCH = 900, 60, 8
HIDDEN = torch.tensor([0.93, 0.95, 0.98])[:, None, None]
TITLES = (
    "photograph",
    "random mask",
    "learned mask, early",
    "learned mask, late",
    "reconstruction",
)


def photographs() -> list[Tensor]:
    """Three ``(3, H, W)`` photographs in [0, 1], three to two."""
    cat, cup, portrait = data.chelsea(), data.coffee(), data.astronaut()[:341]
    return [torch.tensor(photo).movedim(2, 0) / 255 for photo in (cat, cup, portrait)]


def train(
    photos: list[Tensor], mask_ratio: float = RATIO, prediction_ratio: float | None = None
) -> tuple[MaskedAutoencoder, dict[int, PatchMask]]:
    """The autoencoder, and the masks of the whole photographs after EARLY and STEPS steps."""
    torch.manual_seed(0)
    whole = torch.stack([resize(photo, SIZE, antialias=True) for photo in photos]) - 0.5
    large = [resize(photo, [96, 144], antialias=True) - 0.5 for photo in photos]
    crop = RandomResizedCrop(SIZE, scale=(0.8, 1.0), ratio=(1.45, 1.55), antialias=True)
    shape = dict(img_size=SIZE, patch_size=PATCH, embed_dim=128, depth=3, num_heads=4)
    plain = dict(num_classes=0, class_token=False, global_pool="avg")
    encoder = timm.create_model("vit_tiny_patch16_224", **shape, **plain)
    masking = AdversarialMasking(
        mask_ratio,
        PATCH,
        network=dict(downsample=4),
        random_share=0.25,
        prediction_ratio=prediction_ratio,
    )
    model = MaskedAutoencoder(encoder, masking, 128, 1, 4, norm_pix=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=STEPS, pct_start=0.1
    )
    masks = {}
    for step in range(1, STEPS + 1):
        images = torch.stack([crop(large[i]) for i in torch.randint(len(large), (BATCH,))])
        loss = model(images).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in (EARLY, STEPS):
            model.eval()
            masks[step] = masking(whole)
            model.train()
        if step % 100 == 0:
            with torch.no_grad():
                gain = adversarial_gain(
                    lambda mask: model.error_under(images, mask),  # noqa: B023
                    masking(images),
                )
            print(f"step {step}: loss {loss:.4f}, adversarial gain {gain:.2f}", flush=True)
    return model.eval(), masks


@torch.no_grad()
def draw(photos: list[Tensor], model: MaskedAutoencoder, masks: dict[int, PatchMask]) -> None:
    shown = torch.stack([resize(photo, [341, 512], antialias=True) for photo in photos])
    side = (SIZE[0] * 6, SIZE[1] * 6)
    shown = interpolate(shown, side, mode="bicubic", antialias=True).clamp(0, 1)
    whole = torch.stack([resize(photo, SIZE, antialias=True) for photo in photos]) - 0.5
    late = masks[STEPS]
    pred = model.predict(whole, late)
    pred = unpatchify(pred, model.patch_size, late.grid)
    # Predictions of visible patches are not trained, and would bleed into their neighbours.
    pred = torch.where(late.pixel_mask(*SIZE).bool(), pred, whole) + 0.5
    pred = interpolate(pred, side, mode="bicubic").clamp(0, 1)
    rebuilt = torch.where(late.pixel_mask(*side).bool(), pred, shown)
    random = RandomMasking(RATIO, PATCH)(whole, torch.Generator().manual_seed(3))
    columns = [
        shown,
        *(mask.apply(shown, HIDDEN) for mask in (random, masks[EARLY], late)),
        rebuilt,
    ]
    figure, axes = plt.subplots(len(photos), len(columns), figsize=(13.2, 5.55))
    for column, (title, batch) in enumerate(zip(TITLES, columns, strict=True)):
        axes[0, column].set_title(title, fontsize=12)
        for ax, picture in zip(axes[:, column], batch, strict=True):
            ax.imshow(picture.movedim(0, 2))
            ax.set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(PATH, dpi=110, pil_kwargs=dict(quality=86))
    plt.close(figure)
    print(f"wrote {PATH}")


def main() -> None:
    photos = photographs()
    draw(photos, *train(photos))


if __name__ == "__main__":
    main()
