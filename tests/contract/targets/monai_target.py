"""MONAI's masked autoencoder, by amn_masking.adapters.monai, on images and on volumes."""

from __future__ import annotations

from unittest.mock import patch

import torch
from monai.networks.nets import MaskedAutoEncoderViT
from torch import Tensor, nn

from amn_masking.adapters.monai import MaskGivenMixin
from amn_masking.patches import masked_mean, patchify
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by


class LearnedAutoencoder(MaskGivenMixin, MaskedAutoEncoderViT):
    """As a user writes it."""


class MONAI(Target):
    name = "MONAI MaskedAutoEncoderViT"
    package = "monai"
    gate = True
    autocast = False  # it puts tokens of half precision among mask tokens of float32

    def build(self) -> nn.Module:
        return LearnedAutoencoder(
            3, self.image_size, self.patch_size, spatial_dims=2, hidden_size=32, mlp_dim=32,
            num_layers=1, num_heads=2, decoder_hidden_size=24, decoder_mlp_dim=24,
            decoder_num_layers=1, decoder_num_heads=2,
        )  # fmt: skip

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        tokens = model.patch_embedding(images)
        return torch.cat([model.cls_token.to(tokens.dtype).expand(len(images), -1, -1), tokens], 1)

    def error(self, prediction: Tensor, images: Tensor) -> Tensor:
        target = patchify(images, (self.patch_size, self.patch_size))
        return (prediction.float() - target.float()).square().mean(-1)

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        patch_mask = masking(images)
        with (
            seen_by(model.blocks[0]) as tokens,
            seen_by(model.decoder_blocks[0].norm1) as decoded,
        ):
            prediction, mask = model(images, patch_mask)
        error = self.error(prediction, images)
        own = masked_mean(error, mask)
        loss = masking.total_loss(own, error, patch_mask)
        return Step(own, error, tokens[0], decoded[0], loss, patch_mask)

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        kept = noise.argsort(1)[:, : noise.shape[1] // 4]
        with patch("torch.multinomial", return_value=kept), seen_by(model.blocks[0]) as tokens:
            prediction, mask = model(images, 0.75)
        return tokens[0], masked_mean(self.error(prediction, images), mask)


TARGETS = (MONAI(),)
