"""Pictures of masks, of whatever images there are."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra 'viz'")

from amn_masking import AdversarialMasking, RandomMasking
from amn_masking.visualize import draw_masks, undo


def first_panel(images, **options):
    """The pixels of the input's panel, in [0, 255], without titles and borders."""
    picture = draw_masks(images, RandomMasking(patch_size=8)(images), **options)
    height, width = picture.shape[:2]
    return picture[height // 4 : -8, 8 : width // 2 - 8].astype(float)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_number_of_channels_is_drawn_as_red_green_and_blue(channels):
    images = torch.rand(2, channels, 32, 32)
    masking = AdversarialMasking(patch_size=8, network=dict(in_channels=channels))
    picture = draw_masks(images, masking(images), images)
    assert picture.shape[2] == 3
    assert picture.std() > 20


def test_of_many_channels_the_first_three_are_drawn():
    images = torch.zeros(1, 5, 32, 32)
    images[:, 0], images[:, 3:] = 255.0, 255.0
    panel = first_panel(images)
    assert panel.reshape(-1, 3).mean(0).tolist() == pytest.approx([255, 0, 0], abs=2)


MEAN, STD = torch.tensor([0.5]), torch.tensor([0.25])


@pytest.mark.parametrize(
    ("name", "images", "options"),
    [
        ("bytes", lambda x: 255 * x, {}),
        ("in [0, 1]", lambda x: x, {}),
        ("normalised from bytes", lambda x: (255 * x - 127) / 60, dict(mean=127.0, std=60.0)),
        ("normalised from [0, 1]", lambda x: (x - 0.5) / 0.25, dict(mean=0.5, std=0.25)),
        ("normalised by a secret", lambda x: (x - 0.5) / 0.25, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_same_picture_comes_out_whatever_the_scale_of_the_pixels(name, images, options):
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    options = {key: torch.tensor(value) for key, value in options.items()}
    panel = first_panel(images(ramp), **options)
    assert panel.max() > 240
    assert panel.min() < 15
    assert 110 < panel.mean() < 145


def test_pixels_that_are_not_a_number_are_black():
    images = 255 * torch.rand(1, 3, 32, 32)
    images[..., :16, :] = float("nan")
    assert first_panel(images).min() == 0


def test_what_cannot_be_drawn_is_refused_in_a_sentence():
    images = torch.rand(2, 3, 32, 32)
    patch_mask = RandomMasking(patch_size=8)(images)
    with pytest.raises(TypeError, match=r"images expected a torch\.Tensor, got ndarray"):
        draw_masks(images.numpy(), patch_mask)
    with pytest.raises(TypeError, match=r"reconstruction expected a torch\.Tensor, got ndarray"):
        draw_masks(images, patch_mask, images.numpy())
    with pytest.raises(ValueError, match=r"with B=2, one per mask, got \(1, 3, 32, 32\)"):
        draw_masks(images[:1], patch_mask)


def test_a_clip_is_drawn_as_strips_of_one_frame_of_each_slot():
    clip = torch.zeros(2, 3, 8, 16, 16)
    clip[:, :, 4:6] = 1.0  # the third of four slots is white
    patch_mask = AdversarialMasking(0.5, (8, 8, 8))(clip).tubes(4)
    picture = draw_masks(clip, patch_mask, clip)
    height, width = picture.shape[:2]
    assert width / height == pytest.approx(4 / 8, rel=0.05)  # four frames; two clips of four strips
    strip = picture[height // 40 : height // 12, :].astype(float).mean((0, 2))
    frames = [strip[int(width * (i + 0.7) / 4)] for i in range(4)]
    assert frames == pytest.approx([0, 0, 255, 0], abs=5)
    plain = draw_masks(clip, RandomMasking(0.5, (2, 8, 8))(clip))
    assert plain.shape[0] < height


def test_of_a_long_clip_eight_frames_are_drawn():
    clip = torch.linspace(0, 1, 24)[:, None, None].expand(1, 3, 24, 8, 8)
    picture = draw_masks(clip, RandomMasking(0.5, (2, 8, 8))(clip))
    height, width = picture.shape[:2]
    strip = picture[height // 3, :].astype(float).mean(1)
    shown = [strip[int(width * (i + 0.5) / 8)] / 255 for i in range(8)]
    slots = [0, 1, 3, 4, 6, 7, 9, 10]  # of twelve
    assert shown == pytest.approx([2 * slot / 23 for slot in slots], abs=0.02)


def test_signals_are_not_drawn_and_images_of_another_kind_are_refused():
    signals = torch.rand(2, 3, 64)
    with pytest.raises(ValueError, match=r"got a mask of signals; plot .*pixel_mask\(samples\)"):
        draw_masks(signals, RandomMasking(0.5, (8,))(signals))
    clip = torch.rand(2, 3, 4, 16, 16)
    with pytest.raises(ValueError, match=r"\(B, C, D, H, W\) with B=2.* got \(2, 3, 16, 16\)"):
        draw_masks(clip[:, :, 0], RandomMasking(0.5, (2, 8, 8))(clip))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("size", [(4, 4), (3, 4, 4)])
def test_mean_and_deviation_are_of_the_channels_however_many_axes_they_have(shape, size):
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    images = torch.randn(2, 3, *size)
    expected = [images[:, c] * std[c] + mean[c] for c in range(3)]
    found = undo(images, mean.reshape(shape), std.reshape(shape))
    torch.testing.assert_close(found, torch.stack(expected, 1))
