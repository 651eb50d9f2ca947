"""timm's ViTs, each with a :class:`MaskedAutoencoder` around it, and that autoencoder itself."""

from __future__ import annotations

import torch
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amn_masking import RandomMasking
from amn_masking.adapters.timm import MaskedAutoencoder, patch_size
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by

SIZE = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
DECODER = dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)


def tokens_of(encoder: nn.Module, images: Tensor) -> Tensor:
    """What enters the encoder's first block."""
    with seen_by(encoder.blocks[0]) as tokens:
        encoder.forward_features(images)
    return tokens[0]


def step_of(autoencoder: MaskedAutoencoder, images: Tensor) -> Step:
    """One of its forward passes."""
    norm = autoencoder.decoder[0].norm1
    with seen_by(autoencoder.encoder.blocks[0]) as tokens, seen_by(norm) as decoded:
        out = autoencoder(images)
    return Step(out.reconstruction, out.error, tokens[0], decoded[0], out.loss, out.patch_mask)


class Encoder(Target):
    """A bare encoder of timm, which has no loss: :meth:`step` puts it into an autoencoder."""

    package = "timm"
    free_counts = True
    gate = True

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return tokens_of(model, images)

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        # The same decoder for each step, and the caller's random numbers as they were.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            autoencoder = MaskedAutoencoder(model, masking, **DECODER)
        return step_of(autoencoder, images)

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> None:
        return None


class ViT(Encoder):
    name = "timm VisionTransformer"

    def build(self) -> nn.Module:
        return VisionTransformer(img_size=32, **SIZE)


class ViTRegisters(Encoder):
    name = "timm VisionTransformer, 3 registers"
    prefix = 4

    def build(self) -> nn.Module:
        return VisionTransformer(img_size=32, reg_tokens=3, no_embed_class=True, **SIZE)


class Eva02(Encoder):
    name = "timm Eva (EVA-02: rotary embeddings)"

    def build(self) -> nn.Module:
        return Eva(img_size=32, use_rot_pos_emb=True, swiglu_mlp=True, **SIZE)


class NaFlex(Encoder):
    name = "timm NaFlexVit"
    prefix = 0
    image_size = (24, 40)

    def build(self) -> nn.Module:
        return NaFlexVit(pos_embed_grid_size=(4, 4), global_pool="avg", **SIZE)


class HieraUnits(Encoder):
    """Mask units of 8 x 8 pixels, each 2 x 2 tokens before the first block.

    The stock patch embedding overlaps, so that a visible token changes when its neighbours are
    hidden. Here it does not, and tokens can be compared with and without a mask.
    """

    name = "timm Hiera"
    prefix = 0
    image_size = (24, 40)
    free_counts = False
    gate = False

    def build(self) -> nn.Module:
        return Hiera(
            img_size=self.image_size,
            embed_dim=16,
            stages=(1, 1),
            q_pool=1,
            mask_unit_size=(2, 2),
            mask_unit_attn=(True, False),
            patch_kernel=(4, 4),
            patch_padding=(0, 0),
            num_classes=0,
        )

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.units(super().all_tokens(model, images))

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        step = super().step(model, images, masking)
        # Hiera's blocks see the visible units in row-major order; the protocol's is ids_keep's.
        rank = step.patch_mask.ids_keep.argsort(1).argsort(1)
        tokens = self.units(step.tokens)
        rank = rank[:, :, None].expand(-1, -1, tokens.shape[2])
        return step._replace(tokens=tokens.gather(1, rank))

    def units(self, tokens: Tensor) -> Tensor:
        """``(B, 4 N, D)``, the unit running fastest, to ``(B, N, 4 D)``."""
        return tokens.unflatten(1, (4, -1)).transpose(1, 2).flatten(2)


class Autoencoder(Target):
    """:class:`MaskedAutoencoder` as a codebase of its own, with random masking as its stock."""

    name = "amn_masking.adapters.timm.MaskedAutoencoder"
    package = "timm"
    free_counts = True
    gate = True

    def build(self) -> nn.Module:
        encoder = ViT().build()
        return MaskedAutoencoder(encoder, RandomMasking(0.75, patch_size(encoder)), **DECODER)

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        return tokens_of(model.encoder, images)

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        stock, model.masking = model.masking, masking
        try:
            return step_of(model, images)
        finally:
            model.masking = stock

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> None:
        return None  # its masks come from a strategy, RandomMasking's too


TARGETS = [ViT(), ViTRegisters(), Eva02(), NaFlex(), HieraUnits(), Autoencoder()]
