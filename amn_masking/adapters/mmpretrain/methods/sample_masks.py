"""Methods that take the mask from the data samples, where a transform of the pipeline put it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mmengine.logging import print_log
from mmpretrain.models import selfsup
from mmpretrain.structures import DataSample
from torch import Tensor

from amn_masking.adapters.mmpretrain.methods.backbone_masks import same_ids
from amn_masking.adapters.mmpretrain.methods.decoders import fewer_tokens, why_not_fewer
from amn_masking.adapters.mmpretrain.mixin import MaskedMethod
from amn_masking.adapters.mmpretrain.proof import asked, with_masks
from amn_masking.mask import PatchMask


class SampleMasks(MaskedMethod):
    """A method that takes its mask from the data samples.

    The mask that the pipeline's generator made is not used: the generator may be taken out.
    """

    @property
    def takes_free_counts(self) -> bool:
        return True

    def token_mask(self, patch_mask: PatchMask) -> Tensor:
        """``(B, h, w)``, the mask on the method's grid of tokens."""
        return patch_mask.mask.reshape(-1, *patch_mask.grid)

    def with_mask(self, data_samples: list[DataSample], patch_mask: PatchMask) -> list[DataSample]:
        return with_masks(data_samples, self.token_mask(patch_mask))

    def encoder_mask(self, args: tuple, kwargs: dict, output: Any) -> Tensor:
        return args[1] if len(args) > 1 else kwargs["mask"]


class SimMIM(SampleMasks, selfsup.SimMIM):
    """mmpretrain's SimMIM with ``masking=``.

    Its masked patches are as large as the encoder's total stride, 32 pixels, and so hold many
    tokens of 4 pixels. ``patch_size`` may be another multiple of the token's.
    """

    backbones = (selfsup.SimMIMSwinTransformer,)
    mask_ratio = 0.6  # of mmpretrain's SimMIMMaskGenerator
    predicts_pixels = True

    @property
    def patch_size(self) -> tuple[int, int]:
        side = self.backbone.patch_embed.projection.stride[0] * 2 ** (len(self.backbone.stages) - 1)
        return (side, side)

    @property
    def own_grid(self) -> tuple[int, int] | None:
        # Its positions are relative, unless told otherwise.
        return super().own_grid if self.backbone.use_abs_pos_embed else None

    def check_patch_size(self, patch_size: tuple[int, ...]) -> None:
        token = self.head.patch_size
        if len(patch_size) != 2 or any(side % token for side in patch_size):
            raise ValueError(
                f"masking has patch_size={patch_size}, but SimMIM masks whole tokens of {token} "
                f"pixels; use a multiple of {token}, or leave patch_size out"
            )

    def token_mask(self, patch_mask: PatchMask) -> Tensor:
        h, w = patch_mask.grid
        height, width = self.masking.patch_size
        token = self.head.patch_size
        return patch_mask.pixel_mask(h * height // token, w * width // token)[:, 0]


class MaskFeat(SampleMasks, selfsup.MaskFeat):
    """mmpretrain's MaskFeat with ``masking=``. Predicts histograms of oriented gradients."""

    backbones = (selfsup.MaskFeatViT,)
    mask_ratio = 0.395  # 78 of 196, as in mmpretrain's config


class BEiT(SampleMasks, selfsup.BEiT):
    """mmpretrain's BEiT v1 and v2 with ``masking=``.

    Predicts visual tokens. A patch's error is its cross entropy; with v2's second prediction from
    an early layer, the sum of both.
    """

    backbones = (selfsup.BEiTPretrainViT,)
    mask_ratio = 0.38  # 75 of 196, as in mmpretrain's configs


class CAE(SampleMasks, selfsup.CAE):
    """mmpretrain's CAE with ``masking=``.

    A patch's error is the cross entropy of its visual token plus its share of the alignment.
    """

    backbones = (selfsup.CAEPretrainViT,)
    mask_ratio = 0.38  # 75 of 196, as in mmpretrain's config
    takes_free_counts = False  # it makes a rectangle of the visible tokens

    def inject(self, patch_mask: PatchMask) -> AbstractContextManager:
        # The neck counts on 75 masked patches of 196.
        return asked(self.neck, mask_token_num=patch_mask.ids_mask.shape[1])


class iTPN(SampleMasks, selfsup.iTPN):
    """mmpretrain's iTPN with ``masking=``, of pixels and of CLIP's features.

    With CLIP's features the mask is not tight, in stock iTPN neither: the backbone puts its mask
    tokens in after its first two stages, and the neck takes what these stages made before. So a
    prediction sees the pixels of the patch that it is for.
    """

    backbones = (selfsup.iTPNHiViT,)

    def check_method(self) -> None:
        super().check_method()
        if not self.predicts_pixels:
            print_log(
                "iTPN of CLIP's features lets the masked pixels reach the prediction, with any "
                "mask and in stock mmpretrain too: its neck takes two levels of features that are "
                "made before the mask. reconstruction_type='pixel' hides them",
                logger="current",
                level=logging.WARNING,
            )

    @property
    def predicts_pixels(self) -> bool:
        return self.backbone.reconstruction_type == "pixel"

    @property
    def takes_free_counts(self) -> bool:
        return not self.predicts_pixels

    def own_mask_ratio(self) -> float:
        if self.predicts_pixels:
            return super().own_mask_ratio()
        return 0.38  # 75 of 196; the backbone's own is of the other form

    @property
    def no_left_out(self) -> str:
        return why_not_fewer(self.neck) if self.predicts_pixels else ""

    @contextmanager
    def inject(self, patch_mask: PatchMask) -> Iterator[None]:
        if not self.predicts_pixels:
            yield
            return
        with same_ids(self.backbone, patch_mask), fewer_tokens(self.neck, patch_mask):
            yield

    def token_mask(self, patch_mask: PatchMask) -> Tensor:
        return patch_mask.mask if self.predicts_pixels else super().token_mask(patch_mask)

    def encoder_mask(self, args: tuple, kwargs: dict, output: tuple) -> Tensor:
        return output[1] if self.predicts_pixels else super().encoder_mask(args, kwargs, output)

    def with_mask(self, data_samples: list[DataSample], patch_mask: PatchMask) -> list[DataSample]:
        if self.predicts_pixels:
            return data_samples
        return super().with_mask(data_samples, patch_mask)
