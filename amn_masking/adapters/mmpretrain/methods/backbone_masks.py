"""Methods that make the mask in the backbone or in the model: overridden for one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from mmpretrain.models import selfsup
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from amn_masking.adapters.mmpretrain.methods.decoders import (
    fewer_prompts,
    fewer_tokens,
    why_not_fewer,
)
from amn_masking.adapters.mmpretrain.mixin import MaskedMethod
from amn_masking.adapters.mmpretrain.proof import asked
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask


class TokenDropping(MaskedMethod):
    """A method whose encoder sees the visible tokens only, on a MAEViT or MAEHiViT backbone.

    With a MAEViT the images of a batch may keep different numbers of patches: the encoder runs on
    the longest row with the padding hidden from attention, and the decoder gets mask tokens in
    its place, so that each image comes out as it would alone.
    """

    backbones: tuple[type[nn.Module], ...] = (selfsup.MAEViT, selfsup.MAEHiViT)

    @property
    def takes_free_counts(self) -> bool:
        return isinstance(self.backbone, selfsup.MAEViT)

    takes_gate = takes_free_counts

    @property
    def no_left_out(self) -> str:
        return why_not_fewer(self.neck)

    def encoder_mask(self, args: tuple, kwargs: dict, output: tuple) -> Tensor:
        return output[1]

    @contextmanager
    def inject(self, patch_mask: PatchMask) -> Iterator[None]:
        def random_masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
            return patch_mask.gather_visible(x), patch_mask.mask, patch_mask.ids_restore

        padding = patch_mask.padding
        with (
            asked(self.backbone, random_masking=random_masking)
            if isinstance(self.backbone, selfsup.MAEViT)
            else same_ids(self.backbone, patch_mask),
            nullcontext() if padding is None else hidden_padding(self.backbone, self.neck, padding),
            fewer_tokens(self.neck, patch_mask),
        ):
            yield


def same_ids(backbone: selfsup.MAEHiViT, patch_mask: PatchMask) -> AbstractContextManager:
    """Context in which a HiViT keeps the patches of ``patch_mask``."""

    def masking_id(batch_size: int, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        return patch_mask.ids_keep, patch_mask.ids_restore, patch_mask.mask

    return asked(backbone, masking_id=masking_id)


@contextmanager
def hidden_padding(backbone: Any, neck: Any, padding: Tensor) -> Iterator[None]:
    """For the duration, a MAEViT and its decoder take rows of different lengths.

    Attention in the encoder does not look at the padding. What the encoder makes of it is replaced
    by the decoder's mask token, because the decoder finds the masked patches in those places.

    Args:
        backbone: with a class token in front.
        neck: its decoder.
        padding: ``(B, N)`` bool, True = padding.
    """
    # It runs the layers again during backward, when the padding is no longer hidden, and the
    # gradients would be wrong without a word.
    if any("forward" in vars(module) for module in backbone.modules()):
        raise ValueError(
            "activation checkpointing is on for the backbone, but the images of this batch keep "
            "different numbers of patches, which it would lose sight of in backward; use "
            "threshold=dict(type='quantile'), or leave activation_checkpointing out"
        )
    padding = nn.functional.pad(padding, (1, 0), value=False)  # the class token
    visible = ~padding[:, None, None, :]

    embed = neck.decoder_embed.forward

    def with_mask_tokens(latent: Tensor) -> Tensor:
        tokens = embed(latent)
        return torch.where(padding[:, :, None], neck.mask_token.to(tokens.dtype), tokens)

    with ExitStack() as stack:
        for layer in backbone.layers:
            attention = partial(layer.attn.scaled_dot_product_attention, attn_mask=visible)
            stack.enter_context(asked(layer.attn, scaled_dot_product_attention=attention))
        stack.enter_context(asked(neck.decoder_embed, forward=with_mask_tokens))
        yield


class MAE(TokenDropping, selfsup.MAE):
    """mmpretrain's MAE with ``masking=``."""

    predicts_pixels = True


class MFF(TokenDropping, selfsup.MFF):
    """mmpretrain's MFF, a MAE that fuses features of several layers, with ``masking=``."""

    backbones = (selfsup.MFFViT,)
    predicts_pixels = True


class EVA(TokenDropping, selfsup.EVA):
    """mmpretrain's EVA in the style of MAE, with ``masking=``. Predicts CLIP's features."""


class MILAN(MaskedMethod, selfsup.MILAN):
    """mmpretrain's MILAN with ``masking=``, which takes the place of its attention masking.

    Its loss is over the class token and all patches but those left out; the adversary looks at the
    predicted ones.
    """

    backbones = (selfsup.MILANViT,)
    takes_gate = True
    takes_valid = False

    def check_method(self) -> None:
        super().check_method()
        width, expected = self.backbone.embed_dims, self.neck.decoder_embed.in_features
        if width != expected:
            raise ValueError(
                f"MILAN's backbone gives {width} features and its neck expects {expected}, so it "
                f"cannot run, with or without masking=; set model.neck.embed_dim={width} (in "
                "mmpretrain's own MILAN configs it is missing)"
            )

    def encoder_mask(self, args: tuple, kwargs: dict, output: tuple) -> Tensor:
        _, ids_restore, ids_keep, _ = output
        return torch.ones(ids_restore.shape, device=ids_keep.device).scatter(1, ids_keep, 0.0)

    @property
    def no_left_out(self) -> str:
        return why_not_fewer(self.neck)

    @contextmanager
    def inject(self, patch_mask: PatchMask) -> Iterator[None]:
        def attention_masking(x: Tensor, mask_ratio: float, importance: Tensor) -> tuple:
            visible = patch_mask.gather_visible(x)
            return visible, patch_mask.ids_restore, patch_mask.ids_keep, patch_mask.ids_mask

        with (
            asked(self.backbone, attention_masking=attention_masking),
            fewer_prompts(self.neck, patch_mask),
        ):
            yield


class SparK(MaskedMethod, selfsup.SparK):
    """mmpretrain's SparK with ``masking=``: masked images through sparse convolutions."""

    predicts_pixels = True
    takes_free_counts = True

    @property
    def patch_size(self) -> tuple[int, int]:
        # Not by the attribute, whose name holds a typo that may be mended one day.
        side = self.input_size // self.feature_map_size
        return (side, side)

    @property
    def own_grid(self) -> tuple[int, int]:
        return (self.feature_map_size, self.feature_map_size)

    @property
    def loss_module(self) -> nn.Module:
        return self.head.loss

    def own_mask_ratio(self) -> float:
        # Half a patch more than SparK's own rounded count, so that it is met when rounded down.
        return 1 - (self.len_keep + 0.5) / self.feature_map_size**2

    def inject(self, patch_mask: PatchMask) -> AbstractContextManager:
        def mask(shape: torch.Size, device: torch.device) -> Tensor:
            visible = patch_mask.mask == 0
            return visible.reshape(-1, 1, *patch_mask.grid)  # SparK's polarity: True = visible

        return asked(self, mask=mask)


class MixMIM(MaskedMethod, selfsup.MixMIM):
    """mmpretrain's MixMIM with ``masking=``.

    MixMIM fills the masked patches of an image with those of another and needs one mask for the
    whole batch. It is made for the first image: a strategy that looks at the image looks at that
    one, and the adversary is rewarded for that one's error.
    """

    backbones = (selfsup.MixMIMPretrainTransformer,)
    predicts_pixels = True
    takes_free_counts = True
    takes_valid = False
    no_left_out = (
        "predicts every patch of every image, those that one mixture hides from it and the others "
        "from the other mixture"
    )

    def check_method(self) -> None:
        super().check_method()
        if isinstance(self.loss_module, CombinedAdversarialLoss):
            raise ValueError(
                "MixMIM's reconstruction term is over all patches of all images and its mask is of "
                "one, so its head's loss cannot be a CombinedAdversarialLoss; leave the head as it "
                "is and put it into the strategy: masking=dict(loss=dict(lambda_adv=...))"
            )

    @property
    def patch_size(self) -> tuple[int, int]:
        return (self.backbone.encoder_stride, self.backbone.encoder_stride)

    def make_mask(
        self, images: Tensor, data_samples: Sequence[DataSample] | None = None
    ) -> PatchMask:
        return super().make_mask(images[:1], data_samples and data_samples[:1])

    def check_mask(self, patch_mask: PatchMask, images: Tensor) -> None:
        super().check_mask(patch_mask, images[:1])

    def patch_error(self, patch_mask: PatchMask, calls: list[tuple]) -> Tensor:
        return super().patch_error(patch_mask, [tuple(x[:1] for x in call) for call in calls])

    def encoder_mask(self, args: tuple, kwargs: dict, output: tuple) -> Tensor:
        return output[1]

    def inject(self, patch_mask: PatchMask) -> AbstractContextManager:
        def random_masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, ...]:
            h, w = (side // self.backbone.encoder_stride for side in x.shape[2:])
            finer = (patch_mask.pixel_mask(h * d, w * d) for d in (8, 4, 2, 1))
            return tuple(mask.reshape(1, -1, 1) for mask in finer)

        return asked(self.backbone, random_masking=random_masking)
