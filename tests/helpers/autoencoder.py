"""A plain PyTorch masked autoencoder, as someone would write it around a PatchMask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amn_masking import PatchMask
from amn_masking.patches import patchify


class Autoencoder(nn.Module):
    """One encoder block over the visible tokens, one decoder block over all.

    Takes images of ``length`` patches of ``patch`` pixels.
    """

    def __init__(self, patch: int = 4, dim: int = 8, length: int = 36) -> None:
        super().__init__()
        self.patch = (patch, patch)
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.position = nn.Parameter(torch.randn(length, dim) * 0.1)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.1)
        self.encoder = nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.0, batch_first=True)
        self.decoder = nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.0, batch_first=True)
        self.head = nn.Linear(dim, 3 * patch * patch)

    def encode(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        tokens = self.embed(patchify(images, self.patch)) + self.position
        visible = patch_mask.gather_visible(tokens)
        return self.encoder(visible, src_key_padding_mask=patch_mask.padding)

    def forward(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        latent = self.encode(images, patch_mask)
        return self.head(self.decoder(patch_mask.scatter(latent, self.mask_token) + self.position))
