"""Small models of transformers that take bool_masked_pos, by name; images of 32 x 32."""

from __future__ import annotations

import torch
from transformers import (
    DeiTConfig,
    DeiTForMaskedImageModeling,
    FocalNetConfig,
    FocalNetForMaskedImageModeling,
    SwinConfig,
    SwinForMaskedImageModeling,
    Swinv2Config,
    Swinv2ForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
)

PLAIN = dict(patch_size=8, hidden_size=24, num_hidden_layers=2, intermediate_size=48)
PLAIN |= dict(num_attention_heads=2)
# Two stages, so that the decoder works on 4 x 4 tokens; every other block shifts its windows.
STAGES = dict(patch_size=4, embed_dim=12, depths=[2, 1], drop_path_rate=0.0)
WINDOWS = STAGES | dict(num_heads=[2, 2], window_size=4)
FOCAL = STAGES | dict(hidden_sizes=[12, 24], focal_levels=[1, 1], focal_windows=[3, 3])
MODELS = {
    "ViT": (ViTForMaskedImageModeling, ViTConfig, PLAIN),
    "DeiT": (DeiTForMaskedImageModeling, DeiTConfig, PLAIN),
    "Swin": (SwinForMaskedImageModeling, SwinConfig, WINDOWS),
    "Swinv2": (Swinv2ForMaskedImageModeling, Swinv2Config, WINDOWS),
    "FocalNet": (FocalNetForMaskedImageModeling, FocalNetConfig, FOCAL),
}


def build(name, masking=None, **changes):
    """Masks are of patches of 8 pixels; those of Swin, Swinv2 and FocalNet are of 4."""
    torch.manual_seed(1)
    cls, config, sizes = MODELS[name]
    model = cls(config(**dict(image_size=32, encoder_stride=8) | sizes | changes)).train()
    if masking is not None:
        model.masking = masking
    return model
