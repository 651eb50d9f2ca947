"""transformers' models that take bool_masked_pos, by amn_masking.adapters.huggingface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amn_masking.adapters.huggingface import masked_forward
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by
from tests.helpers.masked_image_models import MODELS, build


class BoolMask(Target):
    """Two stages or layers; a patch of the mask is 2 x 2 of Swin's, Swinv2's and FocalNet's."""

    package = "transformers"
    free_counts = True
    decodes_all = True

    def __init__(self, model: str, prefix: int) -> None:
        self.model = model
        self.name = f"transformers {model}, bool_masked_pos"
        self.prefix = prefix
        self.own_patch = MODELS[model][2]["patch_size"]

    def build(self) -> nn.Module:
        return build(self.model)

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.units(model.base_model.embeddings(images))

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        embeddings = model.base_model.embeddings
        with (
            seen_by(embeddings, output=True) as tokens,
            seen_by(model.decoder) as decoded,
        ):
            done = masked_forward(model, images, masking)
        tokens = self.units(tokens[0])
        # What is not visible is the mask token in its place.
        everywhere = torch.ones(len(images), (32 // self.own_patch) ** 2, dtype=torch.bool)
        empty = self.units(embeddings(images, bool_masked_pos=everywhere))
        hidden = done.patch_mask.mask.bool()
        torch.testing.assert_close(
            tokens[:, self.prefix :][hidden], empty[:, self.prefix :][hidden], rtol=0, atol=0
        )
        visible = done.patch_mask.gather_visible(tokens[:, self.prefix :])
        tokens = torch.cat([tokens[:, : self.prefix], visible], 1)
        return Step(
            done.reconstruction, done.error, tokens, decoded[0], done.outputs.loss, done.patch_mask
        )

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        order = noise.argsort(1)
        mask = torch.ones_like(noise).scatter(1, order[:, :4], 0.0).reshape(-1, 4, 4).bool()
        times = self.patch_size // self.own_patch
        mask = mask.repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1)
        with seen_by(model.base_model.embeddings, output=True) as seen:
            loss = model(images, bool_masked_pos=mask).loss
        tokens = self.units(seen[0])
        patches = tokens[:, self.prefix :].take_along_dim(order[:, :4, None], 1)
        return torch.cat([tokens[:, : self.prefix], patches], 1), loss

    def units(self, tokens: Tensor | tuple) -> Tensor:
        """What the embeddings give to ``(B, P + L, D)``, those of a patch of the mask in one."""
        found: Tensor = tokens[0] if isinstance(tokens, tuple) else tokens
        times = self.patch_size // self.own_patch
        if times == 1:
            return found
        return found.unflatten(1, (4, times, 4, times)).transpose(2, 3).reshape(len(found), 16, -1)


PREFIXES = {"ViT": 1, "DeiT": 2, "Swin": 0, "Swinv2": 0, "FocalNet": 0}
TARGETS = [BoolMask(model, prefix) for model, prefix in PREFIXES.items()]
