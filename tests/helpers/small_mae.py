"""A small MAE of mmpretrain, and one step of it."""

from __future__ import annotations

import torch
from mmpretrain.registry import MODELS

MODELS.import_from_location()


def config(**changes):
    """A small MAE: 4 x 4 patches of 8 pixels."""
    model = dict(
        type="MAE",
        backbone=dict(
            type="MAEViT",
            arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48),
            img_size=32,
            patch_size=8,
            mask_ratio=0.75,
        ),
        neck=dict(
            type="MAEPretrainDecoder",
            num_patches=16,
            patch_size=8,
            embed_dim=24,
            decoder_embed_dim=16,
            decoder_depth=1,
            decoder_num_heads=2,
        ),
        head=dict(
            type="MAEPretrainHead",
            norm_pix=True,
            patch_size=8,
            loss=dict(type="PixelReconstructionLoss", criterion="L2"),
        ),
    )
    model.update(changes)
    return model


def build(cls_name="amn_masking.MAE", **changes):
    torch.manual_seed(1)
    model = MODELS.build(config(type=cls_name, **changes))
    torch.manual_seed(2)
    model.init_weights()
    return model.train()


def step(model, seed=3):
    """Losses and gradients by name, of one batch."""
    torch.manual_seed(4)
    images = torch.randn(3, 3, 32, 32)
    torch.manual_seed(seed)
    losses = model.loss(images, [])
    model.zero_grad()
    model.parse_losses(losses)[0].backward()
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
