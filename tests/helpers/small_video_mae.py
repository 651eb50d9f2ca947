"""A small VideoMAE of transformers, strategies for it and clips."""

from __future__ import annotations

import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from amn_masking import AdversarialMasking
from amn_masking.strategies import TubeMasking

SIZE, PATCH = (4, 16, 32), (2, 8, 8)  # 2 x 2 x 4 patches
TUBE = (SIZE[0], *PATCH[1:])


def build(masking=None, **changes):
    torch.manual_seed(1)
    encoder = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    decoder = {f"decoder_{key}": value for key, value in encoder.items()}
    sizes = dict(num_frames=SIZE[0], image_size=SIZE[1:], tubelet_size=PATCH[0], patch_size=8)
    model = VideoMAEForPreTraining(VideoMAEConfig(**sizes | encoder | decoder | changes)).train()
    if masking is not None:
        model.masking = masking
    return model


def adversarial(**options):
    torch.manual_seed(2)
    return AdversarialMasking(**dict(mask_ratio=0.5, patch_size=PATCH) | options)


def tubes(**options):
    return TubeMasking(adversarial(**dict(patch_size=TUBE) | options), SIZE[0] // PATCH[0])


def clips(count=6, seed=3, size=SIZE):
    """``(B, T, C, H, W)``, as the model takes them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *size, generator=generator).transpose(1, 2)
