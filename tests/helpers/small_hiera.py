"""A small Hiera of transformers and images; strategies are those of ``small_vit_mae``."""

from __future__ import annotations

import torch
from transformers import HieraConfig, HieraForPreTraining

SIZE = (24, 40)  # 3 x 5 mask units of 8 x 8 pixels, of 4 x 4 tokens and 2 x 2 predictions each
# The stock patch embedding overlaps, so that a visible token changes when its neighbours are
# hidden. Here it does not, and tokens can be compared with and without a mask.
APART = dict(patch_size=[2, 2], patch_padding=[0, 0])
OVERLAPPING = dict(patch_size=[5, 5], patch_padding=[2, 2])


def build(masking=None, **changes):
    torch.manual_seed(1)
    stages = dict(depths=[1, 1, 1], num_heads=[1, 2, 2], masked_unit_attention=[True, True, False])
    units = dict(patch_stride=[2, 2], masked_unit_size=[4, 4], num_query_pool=1)
    decoder = dict(decoder_hidden_size=24, decoder_depth=2, decoder_num_heads=2)
    config = dict(image_size=list(SIZE), embed_dim=8, **stages, **units, **decoder)
    model = HieraForPreTraining(HieraConfig(**config | APART | changes)).train()
    if masking is not None:
        model.masking = masking
    return model


def pictures(count=8, seed=3, size=SIZE):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))
