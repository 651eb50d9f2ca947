"""A model that sorts ``noise`` of mask units, each of several patches: ``HieraForPreTraining``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.adapters.decoded import decoded_only
from amn_masking.adapters.huggingface.interface import EQUAL_COUNTS, Interface
from amn_masking.adapters.huggingface.noise_in import NO_GATE
from amn_masking.adapters.noise_seam import ratio_of
from amn_masking.adapters.own_loss import check_followed
from amn_masking.mask import PatchMask
from amn_masking.patches import normalise_patches, patchify
from amn_masking.strategies import MaskingStrategy


class UnitNoiseIn(Interface):
    """The mask goes in as an order of the mask units; the encoder drops those behind a count.

    A patch of the mask is a unit, 32 x 32 pixels in the published models. What the decoder predicts
    are smaller squares, one or several of a unit; here they are called parts.
    """

    argument = "noise"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return super().serves(module) and "hiera" in module._modules

    def check(self, strategy: MaskingStrategy | None) -> None:
        if strategy is not None:
            normalised = self.model.config.normalize_pixel_loss
            strategy.require(self.name, self.unit_size, EQUAL_COUNTS, NO_GATE, normalised)
            check_followed(strategy.loss, self.name, criterion="L2")

    def check_mask(
        self,
        patch_mask: PatchMask,
        images: Tensor,
        strategy: MaskingStrategy | None,
        any_size: bool,
    ) -> None:
        # Whatever is asked of the positions, the units and the decoder's positions are fixed.
        own_grid = self.embeddings.mask_spatial_shape
        patch_mask.check_grid(images, self.unit_size, self.name, own_grid)
        self.check_equal_counts(patch_mask)

    def hand_in(self, patch_mask: PatchMask, images: Tensor) -> Tensor:
        self.embeddings.mask_ratio = ratio_of(patch_mask)
        return patch_mask.ids_restore.float()  # it sorts the noise, and this gives that order

    @contextmanager
    def inside(self, patch_mask: Callable[[], PatchMask]) -> Iterator[None]:
        def count_predicted(module: nn.Module, args: tuple, outputs: tuple) -> tuple | None:
            # The model's loss counts where the mask that its decoder returns is False.
            mask = patch_mask()
            if mask.num_left_out == 0:
                return None
            return outputs[0], self.of_parts(mask).predicted == 0

        embeddings, decoder = self.embeddings, self.model.decoder
        own_ratio = embeddings.mask_ratio
        try:
            with (
                decoder.register_forward_hook(count_predicted),
                decoded_only(
                    decoder.decoder_block,
                    decoder.decoder_pred,
                    lambda: self.of_parts(patch_mask()),
                ),
            ):
                yield
        finally:
            embeddings.mask_ratio = own_ratio

    def error(self, outputs: Any, images: Tensor, patch_mask: PatchMask) -> Tensor:
        side, channels = self.model.pred_stride, images.shape[1]
        target = patchify(images, (side, side))
        if self.model.config.normalize_pixel_loss:
            target = normalise_patches(target)
        channels_first = target.unflatten(-1, (-1, channels)).transpose(-1, -2).flatten(-2)
        error = (outputs.logits - channels_first).square().mean(-1)
        return error[:, self.parts(error.device)].mean(-1)

    def of_parts(self, patch_mask: PatchMask) -> PatchMask:
        """The same mask of the parts, those of a unit one after the other."""
        parts, predicted = self.parts(patch_mask.mask.device), patch_mask.num_predicted
        times = parts.shape[1]
        return PatchMask.from_shuffle(
            parts[patch_mask.ids_shuffle].flatten(1),
            times * patch_mask.num_visible,
            tuple(self.model.decoder.tokens_spatial_shape_final),
            num_predicted=None if predicted is None else times * predicted,
        )

    def parts(self, device: torch.device) -> Tensor:
        """``(L, K)`` int64: the K parts of each unit, in the order of their own grid."""
        grid = self.model.decoder.tokens_spatial_shape_final
        height, width = self.model.decoder.mask_unit_spatial_shape_final
        places = torch.arange(grid[0] * grid[1], device=device).reshape(-1, height, *grid[1:])
        return places.unflatten(2, (-1, width)).transpose(1, 2).flatten(2).flatten(0, 1)

    @property
    def embeddings(self) -> Any:
        return self.model.hiera.embeddings.patch_embeddings

    @property
    def unit_size(self) -> tuple[int, ...]:
        """(height, width) in pixels of a mask unit."""
        config = self.model.config
        pairs = zip(config.masked_unit_size, config.patch_stride, strict=True)
        return tuple(tokens * stride for tokens, stride in pairs)
