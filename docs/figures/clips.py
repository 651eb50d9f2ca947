"""The picture of docs/grids.md: clips, learned tubes and reconstructions.

    python -m docs.figures.clips

Trains a small VideoMAE with learned tubes for some minutes on one CPU core, on pans over three
photographs of scikit-image, and writes docs/images/clips.jpg and the adversarial gain. The clips
shown are of the photographs that it was trained on, of another pan. Masks are drawn in eval mode,
without exploration noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from skimage import data
from torch import Tensor
from torchvision.transforms.functional import resize
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.adapters.huggingface import masked_forward
from amn_masking.meters import adversarial_gain
from amn_masking.patches import patchify, unpatchify
from amn_masking.strategies import TubeMasking

PATH = Path(__file__).resolve().parents[1] / "images/clips.jpg"
FRAMES, SIDE, SLOTS, PATCH = 8, 64, 4, (2, 8, 8)
RATIO, STEPS, BATCH = 0.5, 600, 8
HIDDEN = torch.tensor([0.93, 0.95, 0.98])[:, None, None, None]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def photographs() -> list[Tensor]:
    """``(3, 96, W)`` photographs in [0, 1], wider than high."""
    cat, cup, portrait = data.chelsea(), data.coffee(), data.astronaut()[:341]
    pixels = (torch.tensor(photo).movedim(2, 0) / 255 for photo in (cat, cup, portrait))
    return [resize(photo, [96], antialias=True) for photo in pixels]


def pan(photo: Tensor, top: int, left: int, step: int) -> Tensor:
    """``(3, T, SIDE, SIDE)``: a camera that moves by ``step`` pixels a frame."""
    lefts = [left + step * frame for frame in range(FRAMES)]
    return torch.stack([photo[:, top : top + SIDE, x : x + SIDE] for x in lefts], 1)


def drawn_pan(photo: Tensor) -> Tensor:
    """A pan of 3 or 4 pixels a frame to either side, from somewhere."""
    step = int(torch.randint(3, 5, ()))
    room = photo.shape[2] - SIDE - step * (FRAMES - 1)
    left, top = (int(torch.randint(most + 1, ())) for most in (room, photo.shape[1] - SIDE))
    clip = pan(photo, top, left, step)
    return clip.flip(1) if torch.rand(()) < 0.5 else clip


def normalise(clips: Tensor) -> Tensor:
    """``(B, T, 3, H, W)``, as the model sees ``(B, 3, T, H, W)`` clips."""
    mean, std = (values[:, None, None, None] for values in (MEAN, STD))
    return ((clips - mean) / std).transpose(1, 2)


def train(photos: list[Tensor]) -> VideoMAEForPreTraining:
    torch.manual_seed(0)
    small = dict(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192)
    decoder = {f"decoder_{key}": value for key, value in small.items()}
    decoder["decoder_num_hidden_layers"] = 1
    model = VideoMAEForPreTraining(
        VideoMAEConfig(
            num_frames=FRAMES, image_size=SIDE, tubelet_size=PATCH[0], patch_size=PATCH[1],
            norm_pix_loss=False, **small, **decoder,
        )
    )  # fmt: skip
    places = AdversarialMasking(RATIO, (FRAMES, *PATCH[1:]), random_share=0.5)
    model.masking = TubeMasking(places, SLOTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=STEPS, pct_start=0.1
    )
    for _ in range(STEPS):
        chosen = torch.randint(len(photos), (BATCH,)).tolist()
        clips = torch.stack([drawn_pan(photos[index]) for index in chosen])
        loss = masked_forward(model, normalise(clips), model.masking).outputs.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def rows(model: VideoMAEForPreTraining, clips: Tensor) -> tuple[list[tuple[str, Tensor]], float]:
    """Titles and ``(B, 3, T, H, W)`` pictures; and the adversarial gain on these clips."""
    inputs = normalise(clips)
    outputs, _, _, learned = masked_forward(model, inputs, model.masking)
    gain = adversarial_gain(lambda mask: masked_forward(model, inputs, mask).error, learned)
    patches = patchify(clips, PATCH)
    patches[learned.predicted.bool()] = outputs.logits.flatten(0, 1)
    random = TubeMasking(RandomMasking(RATIO, (FRAMES, *PATCH[1:])), SLOTS)(inputs.transpose(1, 2))

    def hide(patch_mask: PatchMask) -> Tensor:
        hidden = patch_mask.pixel_mask(*clips.shape[2:]).bool()
        return torch.where(hidden, HIDDEN.expand_as(clips), clips)

    return [
        ("clip", clips),
        ("random tubes", hide(random)),
        ("learned tubes", hide(learned)),
        ("reconstruction", unpatchify(patches, PATCH, learned.grid).clamp(0, 1)),
    ], float(gain)


def main() -> None:
    photos = photographs()
    model = train(photos)
    clips = torch.stack([pan(photo, 16, 6, 4) for photo in photos[:2]])
    found, gain = rows(model, clips)
    across = len(clips) * SLOTS
    figure, axes = plt.subplots(len(found), across, figsize=(1.25 * across, 1.14 * len(found)))
    for (title, pictures), line in zip(found, axes, strict=True):
        shown = [(clip, slot) for clip in pictures for slot in clip[:, :: PATCH[0]].unbind(1)]
        for ax, (_, frame) in zip(line, shown, strict=True):
            ax.imshow(frame.permute(1, 2, 0).numpy(), interpolation="nearest")
            ax.set_axis_off()
        line[0].text(-0.08, 0.5, title, transform=line[0].transAxes, ha="right", va="center")
    figure.subplots_adjust(left=0.11, right=1, top=1, bottom=0, wspace=0.04, hspace=0.04)
    figure.savefig(PATH, dpi=130, pil_kwargs=dict(quality=88))
    print(f"adversarial gain {gain:.2f}; {PATH}")


if __name__ == "__main__":
    main()
