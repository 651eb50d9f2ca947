"""Models that sort an argument ``noise``: ``ViTMAEForPreTraining``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from amn_masking.adapters.decoded import decoded_only
from amn_masking.adapters.huggingface.interface import EQUAL_COUNTS, Interface
from amn_masking.adapters.noise_seam import ratio_of
from amn_masking.adapters.own_loss import check_followed
from amn_masking.mask import PatchMask
from amn_masking.patches import normalise_patches, patchify
from amn_masking.strategies import MaskingStrategy

NO_GATE = "takes its mask as an order of the patches, through which no gradient flows"


class NoiseIn(Interface):
    """The mask goes in as an order of the patches; the encoder drops those behind a count."""

    argument = "noise"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return super().serves(module) and "vit" in module._modules

    def check(self, strategy: MaskingStrategy | None) -> None:
        if strategy is not None:
            config = self.model.config
            strategy.require(
                self.name, patch_size(config), EQUAL_COUNTS, NO_GATE, config.norm_pix_loss
            )
            check_followed(strategy.loss, self.name, criterion="L2")

    def check_mask(
        self,
        patch_mask: PatchMask,
        images: Tensor,
        strategy: MaskingStrategy | None,
        any_size: bool,
    ) -> None:
        side = self.model.vit.embeddings.patch_embeddings.image_size
        h, w = patch_size(self.model.config)
        own_grid = None if any_size else (side[0] // h, side[1] // w)
        patch_mask.check_grid(images, (h, w), self.name, own_grid)
        self.check_equal_counts(patch_mask)

    def hand_in(self, patch_mask: PatchMask, images: Tensor) -> Tensor:
        self.model.config.mask_ratio = ratio_of(patch_mask)
        # It sorts the noise, so a patch's place in the order is noise that gives that order.
        return patch_mask.ids_restore.float()

    @contextmanager
    def inside(self, patch_mask: Callable[[], PatchMask]) -> Iterator[None]:
        def count_predicted(module: nn.Module, args: tuple, outputs: tuple) -> tuple | None:
            # The model's loss counts the mask that its embeddings return.
            tokens, _, ids_restore = outputs
            mask = patch_mask()
            return (tokens, mask.predicted, ids_restore) if mask.num_left_out else None

        config, decoder = self.model.config, self.model.decoder
        own_ratio = config.mask_ratio
        first_layer = [*decoder.decoder_layers, decoder.decoder_norm][0]  # there may be no layers
        try:
            with (
                self.model.vit.embeddings.register_forward_hook(count_predicted),
                decoded_only(first_layer, decoder.decoder_pred, patch_mask),
            ):
                yield
        finally:
            config.mask_ratio = own_ratio

    def error(self, outputs: Any, images: Tensor, patch_mask: PatchMask) -> Tensor:
        return patch_error(outputs.logits, images, self.model.config)


def patch_error(logits: Tensor, pixel_values: Tensor, config: Any) -> Tensor:
    """``(B, L)`` mean squared error of each patch, as ``ViTMAEForPreTraining`` measures it.

    Args:
        logits: ``(B, L, p * p * C)`` the model's prediction.
        pixel_values: ``(B, C, H, W)``.
        config: the model's, for ``patch_size`` and ``norm_pix_loss``.
    """
    target = patchify(pixel_values, patch_size(config))
    if config.norm_pix_loss:
        target = normalise_patches(target)
    return (logits - target).square().mean(-1)


def patch_size(config: Any) -> tuple[int, int]:
    """(height, width) in pixels of the model's patches."""
    size = config.patch_size
    return (size, size) if isinstance(size, int) else tuple(size)
