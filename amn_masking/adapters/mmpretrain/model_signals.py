"""What strategies that ask the autoencoder itself are given."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from mmpretrain.models import selfsup
from mmpretrain.structures import DataSample
from torch import Tensor

from amn_masking.counts import count_visible
from amn_masking.mask import PatchMask
from amn_masking.noise import uniform
from amn_masking.strategies import AttentionMasking, MaskingStrategy, OracleMasking


def bind(masking: MaskingStrategy, method: Any) -> None:
    """Give the method's attention and error to the strategies within ``masking`` that want them.

    By ``partial`` of a plain function: it is no submodule, so no weight is counted twice, and a
    deep copy of the method holds the copy's.
    """
    for strategy in masking.modules():
        if isinstance(strategy, AttentionMasking) and strategy.attention is None:
            if not isinstance(method.backbone, selfsup.MAEViT):
                raise ValueError(
                    "AttentionMasking takes the class token's attention from a MAEViT backbone, "
                    f"got {type(method.backbone).__name__}; give it attention=, a function from "
                    "images to (B, L), or use another strategy"
                )
            strategy.attention = partial(class_attention, method.backbone)
        if isinstance(strategy, OracleMasking) and strategy.error is None:
            strategy.error = partial(error_at_random, method, strategy)


@torch.no_grad()
def class_attention(backbone: selfsup.MAEViT, images: Tensor) -> Tensor:
    """``(B, L)``: what the class token attends to in the last layer, mean over the heads."""
    attention = backbone.layers[-1].attn
    seen: list[Tensor] = []
    with attention.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        backbone(images, mask=None)
    batch, length, _ = seen[0].shape
    qkv = attention.qkv(seen[0]).reshape(batch, length, 3, attention.num_heads, -1)
    query, key = qkv[:, 0, 0], qkv[:, :, 1]
    weights = torch.einsum("bhd,bnhd->bhn", query, key) * attention.head_dims**-0.5
    return weights.float().softmax(2).mean(1)[:, 1:]


@torch.no_grad()
def error_at_random(method: Any, oracle: OracleMasking, images: Tensor) -> Tensor:
    """``(B, L)``: error of each patch, mean over the random masks that hide it.

    The patches, in random order, are hidden one part after the other, so that there is none that
    no mask hides; at least ``oracle.draws`` masks, whole rounds of them. In ``eval()`` the orders
    are the same in every call and for every image.
    """
    grid = oracle.grid(images)
    length = grid[0] * grid[1]
    num_visible = count_visible(length, oracle.mask_ratio)
    masks = math.ceil(length / (length - num_visible))
    total = count = torch.zeros(())
    samples = [DataSample() for _ in images]
    fixed = None if oracle.training else torch.Generator().manual_seed(0)
    for _ in range(math.ceil(oracle.draws / masks)):
        if fixed is None:
            noise = uniform((len(images), length), images.device)
        else:
            noise = uniform((1, length), fixed.device, fixed).to(images.device)
        order = noise.argsort(1).expand(len(images), -1)
        for place in range(1, masks + 1):
            # The last are masked. Where the parts do not come out even, the last takes some of
            # the first again.
            shuffle = order.roll(-place * (length - num_visible), 1)
            patch_mask = PatchMask.from_shuffle(shuffle, num_visible, grid)
            error = method.error_under(patch_mask, images, samples)
            total = total + error * patch_mask.mask
            count = count + patch_mask.mask
    return total / count
