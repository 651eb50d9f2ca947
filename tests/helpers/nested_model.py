"""A small masked autoencoder of clips with the interface of terratorch's Prithvi, written for our
tests: the encoder masks, the loss comes in a dict, prediction and mask as pictures.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.patches import patchify, unpatchify


class Embed(nn.Module):
    """A patch to a token; knows the patches' size and the grid."""

    def __init__(self, img_size: int, num_frames: int, patch_size: tuple, channels: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        size = (num_frames, img_size, img_size)
        self.grid_size = tuple(side // part for side, part in zip(size, patch_size, strict=True))
        self.proj = nn.Linear(math.prod(patch_size) * channels, dim)

    def forward(self, clips: Tensor) -> Tensor:
        return self.proj(patchify(clips, self.patch_size))


class Encoder(nn.Module):
    """Masks by sorting noise and encodes what is left."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.patch_embed = Embed(*args)
        dim = self.patch_embed.proj.out_features
        self.position = nn.Parameter(0.1 * torch.randn(math.prod(self.patch_embed.grid_size), dim))
        self.block = nn.TransformerEncoderLayer(dim, 2, dim, 0.0, batch_first=True)

    def random_masking(self, sequence: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        kept = int(sequence.shape[1] * (1 - mask_ratio))
        order = torch.rand(sequence.shape[0], sequence.shape[1]).argsort(1)
        rank = order.argsort(1)
        visible = sequence.take_along_dim(order[:, :kept, None], 1)
        return visible, (rank >= kept).float(), rank

    def forward(self, clips: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.patch_embed(clips) + self.position
        visible, mask, rank = self.random_masking(tokens, mask_ratio)
        return self.block(visible), mask, rank


class PrithviMAE(nn.Module):
    """``({"loss": loss}, pictures (B, C, T, H, W), mask of pixels (B, T, H, W))``."""

    def __init__(
        self,
        img_size: int = 16,
        num_frames: int = 4,
        patch_size: tuple[int, int, int] = (1, 4, 4),
        in_chans: int = 6,
        embed_dim: int = 8,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(img_size, num_frames, patch_size, in_chans, embed_dim)
        self.mask_ratio, self.norm_pix_loss = mask_ratio, norm_pix_loss
        self.mask_token = nn.Parameter(0.1 * torch.randn(embed_dim))
        self.decoder_pred = nn.Linear(embed_dim, math.prod(patch_size) * in_chans)

    def patchify(self, pixel_values: Tensor) -> Tensor:
        return patchify(pixel_values, self.encoder.patch_embed.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        embed = self.encoder.patch_embed
        return unpatchify(patches, embed.patch_size, embed.grid_size)

    def forward(self, pixel_values: Tensor, mask_ratio: float | None = None) -> tuple:
        latent, mask, rank = self.encoder(pixel_values, mask_ratio or self.mask_ratio)
        hidden = self.mask_token.expand(len(mask), mask.shape[1] - latent.shape[1], -1)
        tokens = torch.cat([latent, hidden], 1).take_along_dim(rank[:, :, None], 1)
        pred = self.decoder_pred(tokens + self.encoder.position)
        error = (pred - self.patchify(pixel_values)).square().mean(-1)
        pixels = self.unpatchify(mask[:, :, None].expand_as(pred))[:, 0]
        return {"loss": (error * mask).sum() / mask.sum()}, self.unpatchify(pred), pixels
