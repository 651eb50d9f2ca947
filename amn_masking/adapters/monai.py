"""Masks for MONAI's masked autoencoder of images and volumes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.adapters.decoded import decoded_only
from amn_masking.mask import PatchMask


class MaskGivenMixin(nn.Module):
    """Lets MONAI's ``MaskedAutoEncoderViT`` take a mask where it takes a ratio::

        class Learned(MaskGivenMixin, MaskedAutoEncoderViT):
            pass

        patch_mask = masking(volumes)
        prediction, mask = Learned(...)(volumes, patch_mask)

    The loss is the training loop's, as with the model itself; ``masking.total_loss`` adds the
    adversarial terms to it. With a number, or without, the model is the stock one, bit for bit.

    Of the class beside it this is used: ``forward(x, masking_ratio)``, which hands the ratio down
    to ``_masking(x, masking_ratio) -> (tokens, selected_indices, mask)`` and returns
    ``(prediction, mask)``; ``patch_size`` and ``img_size``; for left-out patches
    ``decoder_blocks``, in a list, and ``decoder_pred``.
    """

    patch_size: tuple[int, ...]
    img_size: tuple[int, ...]
    decoder_blocks: Any
    decoder_pred: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masked_with: Tensor | None = None  # the mask that _masking gave in this pass

    def forward(self, x: Tensor, masking_ratio: PatchMask | float | None = None) -> Any:
        """The model's own forward pass, under the given mask.

        Args:
            x: ``(B, C, H, W)`` images or ``(B, C, D, H, W)`` volumes.
            masking_ratio: the mask; or what the model takes itself.

        Returns:
            ``(B, L, D)`` prediction, 0 at patches that are left out, and ``(B, L)`` int32 mask of
            the predicted patches, 1 = predicted, patches in the order of the grid.

        Raises:
            TypeError: neither a mask nor a number.
            ValueError: the mask is not of these images and the model's patches, or of counts that
                differ between images, or the model masked in another way.
        """
        stock: Any = super().forward
        name = type(self).__name__
        if not isinstance(masking_ratio, PatchMask):
            if isinstance(masking_ratio, (nn.Module, Tensor)):
                raise TypeError(
                    f"{name} expected the PatchMask that a strategy made of these images, "
                    "masking(images), or PatchMask.from_mask of a tensor, or a ratio, got "
                    f"{type(masking_ratio).__name__}"
                )
            return stock(x, masking_ratio)
        patch_mask = masking_ratio
        if patch_mask.padding is not None:
            raise ValueError(
                f"{name} encodes the same number of visible patches of every image, but those of "
                "this mask differ; use threshold=dict(type='quantile')"
            )
        grid = [side // patch for side, patch in zip(self.img_size, self.patch_size, strict=True)]
        patch_mask.check_grid(x, self.patch_size, name, grid)
        decoding = (
            decoded_only(self.decoder_blocks[0], self.decoder_pred, patch_mask)
            if patch_mask.num_left_out
            else nullcontext()
        )
        self.masked_with = None
        with decoding:
            prediction, mask = stock(patch_mask.fill_invalid(x), patch_mask)
        used, self.masked_with = self.masked_with, None
        if used is None or mask is not used:
            raise ValueError(
                f"{name} was expected to mask by its method _masking(x, masking_ratio) and to "
                "return the mask that it gives, but did not; with this version of MONAI override "
                "the method that it calls in its place"
            )
        return prediction, mask

    def _masking(self, x: Tensor, masking_ratio: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(masking_ratio, PatchMask):
            parent: Any = super()
            return parent._masking(x, masking_ratio)
        self.masked_with = masking_ratio.predicted.to(torch.int)
        return masking_ratio.gather_visible(x), masking_ratio.ids_keep, self.masked_with
