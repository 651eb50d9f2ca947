"""transformers' HieraForPreTraining, by amn_masking.adapters.huggingface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from amn_masking.adapters.huggingface import masked_forward
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by
from tests.helpers.small_hiera import SIZE, build

PARTS = (2, 2)  # what the decoder predicts of a mask unit


class Hiera(Target):
    """Mask units of 8 x 8 pixels, each 4 x 4 tokens before the first block and 2 x 2 decoded."""

    package = "transformers"
    prefix = 0
    image_size = SIZE
    row_major = True
    bfloat16 = False  # its masks are multiplied in as float32

    def __init__(self, name: str, normalised: bool) -> None:
        self.name = name
        self.normalised = normalised

    def build(self) -> nn.Module:
        return build(normalize_pixel_loss=self.normalised)

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        with at_ratio(model, 0.0), seen_by(model.hiera.encoder) as tokens:
            model.hiera(images)
        return units(tokens[0])

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        norm = model.decoder.decoder_block.layers[0].layernorm_before
        with seen_by(model.hiera.encoder) as tokens, seen_by(norm) as seen:
            done = masked_forward(model, images, masking)
        if done.patch_mask.num_left_out:  # unit by unit
            decoded = seen[0].unflatten(1, (-1, PARTS[0] * PARTS[1])).flatten(2)
        else:
            h, w = done.patch_mask.grid
            decoded = seen[0].unflatten(1, (h, PARTS[0], w, PARTS[1])).transpose(2, 3)
            decoded = decoded.flatten(3).flatten(1, 2)
        return Step(
            done.reconstruction, done.error, units(tokens[0]), decoded, done.outputs.loss,
            done.patch_mask,
        )  # fmt: skip

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with at_ratio(model, 0.75), seen_by(model.hiera.encoder) as tokens:
            loss = model(images, noise=noise).loss
        return units(tokens[0]), loss


@contextmanager
def at_ratio(model: nn.Module, mask_ratio: float) -> Iterator[None]:
    """For the duration, the ratio of the model's own masks."""
    embeddings = model.hiera.embeddings.patch_embeddings
    before, embeddings.mask_ratio = embeddings.mask_ratio, mask_ratio
    try:
        yield
    finally:
        embeddings.mask_ratio = before


def units(tokens: Tensor) -> Tensor:
    """``(B, 16 N, D)``, the unit running fastest, to ``(B, N, 16 D)``."""
    return tokens.unflatten(1, (16, -1)).transpose(1, 2).flatten(2)


TARGETS = (
    Hiera("transformers Hiera", False),
    Hiera("transformers Hiera, normalize_pixel_loss", True),
)
