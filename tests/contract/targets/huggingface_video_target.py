"""transformers' VideoMAEForPreTraining, by amn_masking.adapters.huggingface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amn_masking.adapters.huggingface import masked_forward
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by
from tests.helpers.small_video_mae import PATCH, SIZE, build


class VideoMAE(Target):
    """Two encoder layers, two decoder layers; masks of patches in space and time."""

    package = "transformers"
    prefix = 0
    image_size = SIZE
    patch_size = PATCH
    row_major = True
    decodes_in_order = False

    def __init__(self, name: str, norm_pix_loss: bool) -> None:
        self.name = name
        self.norm_pix_loss = norm_pix_loss

    def build(self) -> nn.Module:
        return build(norm_pix_loss=self.norm_pix_loss)

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return model.videomae.embeddings(images.transpose(1, 2), None)

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        first = model.videomae.encoder.layer[0]
        norm = model.decoder.decoder_layers[0].layernorm_before
        with seen_by(first) as tokens, seen_by(norm) as decoded:
            done = masked_forward(model, images.transpose(1, 2), masking)
        # Visible and predicted are in the order of the grid each; the protocol's is ids_shuffle's.
        mask = done.patch_mask
        kept, count = mask.num_visible, mask.num_patches - mask.num_left_out
        parts = mask.ids_shuffle[:, :kept], mask.ids_shuffle[:, kept:count]
        ids = torch.cat([part.sort(1).values for part in parts], 1)
        places = decoded[0].new_zeros(len(images), mask.num_patches, decoded[0].shape[2])
        places = places.scatter(1, ids[:, :, None].expand_as(decoded[0]), decoded[0])
        in_order = places.take_along_dim(mask.ids_shuffle[:, :count, None], 1)
        return Step(done.reconstruction, done.error, tokens[0], in_order, done.outputs.loss, mask)

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.ones_like(noise).scatter(1, noise.argsort(1)[:, :4], 0.0).bool()
        with seen_by(model.videomae.encoder.layer[0]) as tokens:
            loss = model(images.transpose(1, 2), bool_masked_pos=hidden).loss
        return tokens[0], loss


TARGETS = (
    VideoMAE("transformers VideoMAE", False),
    VideoMAE("transformers VideoMAE, norm_pix_loss", True),
)
