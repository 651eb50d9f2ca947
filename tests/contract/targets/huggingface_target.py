"""transformers' ViTMAEForPreTraining, by amn_masking.adapters.huggingface."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from amn_masking.adapters.huggingface import masked_forward
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by


class HuggingFaceViTMAE(Target):
    """Two encoder layers, one decoder layer."""

    package = "transformers"

    def __init__(self, name: str, norm_pix_loss: bool) -> None:
        self.name = name
        self.norm_pix_loss = norm_pix_loss

    def build(self) -> nn.Module:
        encoder = dict(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        )
        decoder = {f"decoder_{key}": value for key, value in encoder.items()}
        decoder["decoder_num_hidden_layers"] = 1
        config = ViTMAEConfig(
            image_size=self.image_size[0],
            patch_size=self.patch_size,
            norm_pix_loss=self.norm_pix_loss,
            **encoder,
            **decoder,
        )
        return ViTMAEForPreTraining(config).train()

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        embeddings = model.vit.embeddings
        in_order = torch.arange(embeddings.patch_embeddings.num_patches, dtype=torch.float32)
        ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
        try:
            return embeddings(images, noise=in_order.expand(len(images), -1))[0]
        finally:
            model.config.mask_ratio = ratio

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        norm = model.decoder.decoder_layers[0].layernorm_before
        with seen_by(first_layer(model)) as tokens, seen_by(norm) as decoded:
            done = masked_forward(model, images, masking)
        return Step(
            done.reconstruction, done.error, tokens[0], decoded[0], done.outputs.loss,
            done.patch_mask,
        )  # fmt: skip

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with seen_by(first_layer(model)) as tokens:
            loss = model(images, noise=noise).loss
        return tokens[0], loss


def first_layer(model: nn.Module) -> nn.Module:
    """The first encoder block; transformers 4 has them one level deeper."""
    encoder = getattr(model.vit, "encoder", None)
    return model.vit.layers[0] if encoder is None else encoder.layer[0]


TARGETS = (
    HuggingFaceViTMAE("transformers ViTMAE", False),
    HuggingFaceViTMAE("transformers ViTMAE, norm_pix_loss", True),
)
