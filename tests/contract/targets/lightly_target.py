"""MAE as lightly's examples write it, on both of its encoders, by amn_masking.adapters.lightly."""

from __future__ import annotations

from unittest.mock import patch

import torch
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    MaskedVisionTransformerTorchvision,
)
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer as TorchvisionVisionTransformer

from amn_masking.adapters.lightly import patch_error, token_mask
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by

DIM = 24


class MAE(nn.Module):
    """Encoder, decoder and prediction of pixels."""

    def __init__(self, backbone: nn.Module, prefix: int, patch_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.prefix = prefix
        self.patch_size = patch_size
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=backbone.sequence_length - prefix,
            embed_dim=DIM,
            depth=1,
            num_heads=2,
            num_prefix_tokens=prefix,
        )
        self.predict = nn.Linear(DIM, 3 * patch_size**2)

    def forward(
        self, images: Tensor, idx_keep: Tensor, idx_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(pred, target, loss)`` of the patches of ``idx_mask``, decoded beside the kept."""
        encoded = self.backbone.encode(images, idx_keep=idx_keep)
        size = (len(images), self.backbone.sequence_length)
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, idx_keep, encoded.type_as(tokens))
        decoded = self.decoder(tokens, idx_keep=torch.cat([idx_keep, idx_mask], 1))
        pred = self.predict(decoded[:, idx_keep.shape[1] :])
        patches = utils.patchify(images, self.patch_size)
        target = utils.get_at_index(patches, idx_mask - self.prefix)
        return pred, target, F.mse_loss(pred, target)


class LightlyMAE(Target):
    """One of lightly's encoders."""

    package = "lightly"
    decodes_in_order = False

    def __init__(self, name: str, prefix: int = 1) -> None:
        self.name = name
        self.prefix = prefix

    def build(self) -> nn.Module:
        return MAE(self.backbone(), self.prefix, self.patch_size).train()

    def backbone(self) -> nn.Module:
        """The small encoder."""
        raise NotImplementedError

    def first_block(self, backbone: nn.Module) -> nn.Module:
        """Its first block."""
        raise NotImplementedError

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.backbone.preprocess(images)

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        patch_mask = masking(images)
        idx_keep, idx_mask = token_mask(patch_mask, model.backbone, images)
        norm = model.decoder.blocks[0].norm1
        with seen_by(self.first_block(model.backbone)) as tokens, seen_by(norm) as decoded:
            pred, target, loss = model(images, idx_keep, idx_mask)
        error = patch_error(pred, target, idx_mask, patch_mask, model.backbone)
        total = masking.total_loss(loss, error, patch_mask)
        return Step(loss, error, tokens[0], decoded[0], total, patch_mask)

    def stock_step(
        self, model: nn.Module, images: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        if self.prefix != 1:
            return None  # random_token_mask keeps one prefix token and may mask the others
        with_class_token = F.pad(noise, (1, 0))
        with patch("torch.rand", return_value=with_class_token):
            idx = utils.random_token_mask(with_class_token.shape, mask_ratio=0.75)
        with seen_by(self.first_block(model.backbone)) as tokens:
            _, _, loss = model(images, *idx)
        return tokens[0], loss


class LightlyTimm(LightlyMAE):
    """timm's ViT, with registers where the prefix is longer than the class token."""

    def backbone(self) -> nn.Module:
        vit = TimmVisionTransformer(
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=DIM,
            depth=2,
            num_heads=2,
            reg_tokens=self.prefix - 1,
        )
        return MaskedVisionTransformerTIMM(vit)

    def first_block(self, backbone: nn.Module) -> nn.Module:
        return backbone.vit.blocks[0]


class LightlyTorchvision(LightlyMAE):
    """torchvision's ViT."""

    def backbone(self) -> nn.Module:
        vit = TorchvisionVisionTransformer(
            image_size=self.image_size[0],
            patch_size=self.patch_size,
            num_layers=2,
            num_heads=2,
            hidden_dim=DIM,
            mlp_dim=2 * DIM,
        )
        return MaskedVisionTransformerTorchvision(vit)

    def first_block(self, backbone: nn.Module) -> nn.Module:
        return backbone.vit.encoder.layers[0]


TARGETS = (
    LightlyTimm("lightly MAE, TIMM"),
    LightlyTimm("lightly MAE, TIMM with 4 registers", prefix=5),
    LightlyTorchvision("lightly MAE, Torchvision"),
)
