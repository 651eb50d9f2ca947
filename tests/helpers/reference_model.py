"""A small masked autoencoder with the interface of the reference MAE, written for our tests.

It is not the reference's code: that has a non-commercial licence. What it shares are the names and
the shapes that its many forks share too.
"""

from __future__ import annotations

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from amn_masking.patches import patchify


class SmallMaskedAutoencoder(nn.Module):
    """Masks at random: encodes the visible patches, decodes all, compares the masked ones.

    Args:
        img_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        embed_dim: width of the encoder; the decoder's is half of it.
        depth: blocks of the encoder; the decoder has one.
        norm_pix_loss: whether each target patch is normalised by its own mean and deviation.
    """

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 8,
        embed_dim: int = 16,
        depth: int = 2,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        self.norm_pix_loss = norm_pix_loss
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        length, decoder_dim = self.patch_embed.num_patches, embed_dim // 2
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + length, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, 4, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + length, decoder_dim))
        self.decoder_blocks = nn.ModuleList([Block(decoder_dim, 4, qkv_bias=True)])
        self.decoder_norm = nn.LayerNorm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, 3 * patch_size**2)

    def patchify(self, imgs: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, L, p * p * 3)``."""
        return patchify(imgs, self.patch_embed.patch_size)

    def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``(B, L, D)`` tokens those of least noise; the mask, 1 = masked; ids_restore."""
        noise = torch.rand(x.shape[:2], device=x.device)
        order = noise.argsort(1)
        rank = order.argsort(1)
        kept = int(x.shape[1] * (1 - mask_ratio))
        return x.take_along_dim(order[:, :kept, None], 1), (rank >= kept).float(), rank

    def embed(self, imgs: Tensor) -> Tensor:
        """``(B, L, D)`` tokens with their positions, without the class token."""
        return self.patch_embed(imgs) + self.pos_embed[:, 1:]

    def with_class_token(self, tokens: Tensor) -> Tensor:
        first = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([first.expand(len(tokens), -1, -1), tokens], 1)

    def forward_encoder(self, imgs: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        tokens, mask, ids_restore = self.random_masking(self.embed(imgs), mask_ratio)
        tokens = self.with_class_token(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), mask, ids_restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        first, tokens = self.decoder_embed(latent).split([1, latent.shape[1] - 1], 1)
        hidden = ids_restore.shape[1] - tokens.shape[1]
        tokens = torch.cat([tokens, self.mask_token.expand(len(tokens), hidden, -1)], 1)
        tokens = torch.cat([first, tokens.take_along_dim(ids_restore[:, :, None], 1)], 1)
        tokens = tokens + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        target = self.patchify(imgs)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        error = (pred - target).square().mean(-1)
        return (error * mask).sum() / mask.sum()

    def forward(self, imgs: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
        """The loss; ``(B, L, p * p * 3)`` predictions; the mask ``(B, L)``, 1 = masked."""
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask
