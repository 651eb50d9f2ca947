"""stable-pretraining's MAE, by amn_masking.adapters.stable_pretraining, on a model of ours with its
interface: the library itself needs thirty packages.
"""

from __future__ import annotations

from unittest.mock import patch

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amn_masking.adapters.stable_pretraining import TokensMaskedMixin
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by
from tests.helpers.token_masked_model import MAE


class LearnedAutoencoder(TokensMaskedMixin, MAE):
    """As a user writes it."""


class TokensMasked(Target):
    name = "stable-pretraining's interface"
    package = "timm"
    leaves_out = False
    gate = True

    def build(self) -> nn.Module:
        vit = VisionTransformer(
            self.image_size, self.patch_size, embed_dim=16, depth=2, num_heads=2, num_classes=0
        )
        return LearnedAutoencoder(vit)

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        vit = model.encoder.vit
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(images), -1, -1)
        return torch.cat([first, model.encoder.all_tokens(images)], 1)

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        before, model.masking = model.masking, masking
        made, own = [], []
        handles = [
            masking.register_forward_hook(lambda _, args, out: made.append(out)),
            model.loss_fn.register_forward_hook(lambda _, args, out: own.append(out)),
        ]
        compute, errors = model.loss_fn._compute_loss, []
        try:
            with (
                patch.object(
                    type(model.loss_fn), "_compute_loss",
                    lambda loss, *args: errors.append(compute(*args)) or errors[-1],
                ),
                seen_by(model.encoder.vit.blocks[0]) as tokens,
                seen_by(model.decoder) as decoded,
            ):  # fmt: skip
                if model.training:
                    loss = model(images).loss
                else:  # where forward masks nothing
                    out, error = model.masked_forward(images, mask := masking(images))
                    loss = masking.total_loss(out.loss, error, mask)
        finally:
            model.masking = before
            for handle in handles:
                handle.remove()
        return Step(own[0], errors[0], tokens[0], decoded[0], loss, made[0])

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with patch("torch.rand", return_value=noise), seen_by(model.encoder.vit.blocks[0]) as seen:
            out = model(images)
        return seen[0], out.loss


TARGETS = (TokensMasked(),)
