"""A small ViTMAE of transformers, a strategy for it and images."""

from __future__ import annotations

import torch
from transformers import (
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from amn_masking import AdversarialMasking


def build(masking=None, **changes):
    torch.manual_seed(1)
    encoder = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    decoder = {f"decoder_{key}": value for key, value in encoder.items()}
    config = dict(image_size=32, patch_size=8, **encoder, **decoder) | changes
    model = ViTMAEForPreTraining(ViTMAEConfig(**config)).train()
    if masking is not None:
        model.masking = masking
    return model


def adversarial(**options):
    torch.manual_seed(2)
    return AdversarialMasking(**dict(mask_ratio=0.5, patch_size=8) | options)


def pictures(count=8, seed=3, size=(32, 32)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))
