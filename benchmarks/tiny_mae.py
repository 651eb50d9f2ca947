"""A masked autoencoder of a minute, and pictures without end for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking import PatchMask
from amn_masking.patches import patchify

PATCH = 4


def pictures(count: int, generator: torch.Generator, side: int = 24) -> Tensor:
    """``(count, 3, side, side)`` smooth colours, with a fine texture around one place of each.

    The texture, and how strong it is, is what makes patches, and images, hard.
    """
    smooth = F.interpolate(
        torch.randn(count, 3, 3, 3, generator=generator), (side, side), mode="bicubic"
    )
    place = torch.rand(count, 2, 1, generator=generator) * side
    rows, columns = (-(torch.arange(side) - place).square() / 50).exp().unbind(1)
    strength = 2 * torch.rand(count, 1, 1, 1, generator=generator)
    window = strength * rows[:, None, :, None] * columns[:, None, None, :]
    texture = torch.randn(count, 3, side // 2, side // 2, generator=generator)
    return smooth + window * F.interpolate(texture, (side, side))


class TinyMAE(nn.Module):
    """One encoder block over the visible tokens, one decoder block over all."""

    def __init__(self, side: int = 24, dim: int = 32) -> None:
        super().__init__()
        length = (side // PATCH) ** 2
        self.embed = nn.Linear(3 * PATCH * PATCH, dim)
        self.position = nn.Parameter(torch.randn(length, dim) * 0.1)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.1)
        self.encoder = nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.0, batch_first=True)
        self.decoder = nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.0, batch_first=True)
        self.head = nn.Linear(dim, 3 * PATCH * PATCH)

    def forward(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L, D)`` predicted patches."""
        tokens = self.embed(patchify(images, (PATCH, PATCH))) + self.position
        visible = patch_mask.gather_visible(tokens)
        latent = self.encoder(visible, src_key_padding_mask=patch_mask.padding)
        return self.head(self.decoder(patch_mask.scatter(latent, self.mask_token) + self.position))

    def error(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L)`` squared error of each patch."""
        return (self(images, patch_mask) - patchify(images, (PATCH, PATCH))).square().mean(-1)
