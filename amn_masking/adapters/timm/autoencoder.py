"""A masked autoencoder around any ViT of timm."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.hiera import Hiera
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from amn_masking.adapters.own_loss import check_followed
from amn_masking.adapters.timm.encoders import EQUAL_COUNTS, NO_GATE, masked, patch_size
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.patches import (
    masked_mean,
    normalise_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from amn_masking.strategies import MaskingStrategy

MEAN_SQUARE = CombinedAdversarialLoss()


class Output(NamedTuple):
    """One forward pass.

    Attributes:
        loss: the scalar to minimise: the reconstruction with the strategy's adversarial terms.
        reconstruction: the error, mean over the batch's masked patches.
        pred: ``(B, L, p_h * p_w * C)`` predicted patches, channels last, on the target's scale.
        error: ``(B, L)`` error of each patch; at visible ones untrained.
        patch_mask: the mask that all this was made under.
    """

    loss: Tensor
    reconstruction: Tensor
    pred: Tensor
    error: Tensor
    patch_mask: PatchMask


class MaskedAutoencoder(nn.Module):
    """He et al., "Masked Autoencoders Are Scalable Vision Learners" (arXiv:2111.06377).

    The encoder sees the visible tokens only. A small decoder of timm's blocks, with fixed 2-D
    sine-cosine positions made for the batch's own grid, sees them and a mask token everywhere
    else, and predicts pixels. Error: what the strategy's loss says, else the mean square.

    ``parameters()`` are all that learns, the masking network included. ``encoder`` stays timm's own
    model: its state dict loads into ``timm.create_model``, made with the same arguments.

    Args:
        encoder: a ``VisionTransformer``, ``Eva``, ``NaFlexVit`` or ``Hiera`` of timm;
            ``num_classes=0`` leaves out a head that nothing would train.
        masking: any strategy, with the encoder's patch size.
        decoder_dim: width, a multiple of 4 and of ``decoder_heads``.
        decoder_depth: blocks.
        decoder_heads: attention heads.
        norm_pix: whether a target patch is its pixels less their mean, over their deviation.

    Raises:
        TypeError: not such an encoder, or not a strategy.
        ValueError: another patch size, a width that does not divide, a loss with ``channel``, or
            Hiera with free counts or a gate.
    """

    def __init__(
        self,
        encoder: nn.Module,
        masking: MaskingStrategy,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size(encoder)
        if not isinstance(masking, MaskingStrategy):
            raise TypeError(
                f"masking expected a MaskingStrategy such as AdversarialMasking(patch_size="
                f"{self.patch_size}), got {type(masking).__name__}"
            )
        units = isinstance(encoder, Hiera)
        masking.require(
            type(encoder).__name__,
            self.patch_size,
            equal_counts=EQUAL_COUNTS if units else "",
            no_gate=NO_GATE if units else "",
            normalised_targets=norm_pix,
        )
        check_followed(masking.loss, type(self).__name__, criterion=None, reconstruct=True)
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise ValueError(
                f"decoder_dim expected a multiple of 4 and of decoder_heads={decoder_heads}, got "
                f"{decoder_dim}"
            )
        # Any: these are timm's, and its classes have no common base that says so.
        self.encoder: Any = encoder
        self.masking: Any = masking
        self.prefix: int = getattr(encoder, "num_prefix_tokens", 0)
        self.norm_pix = norm_pix
        check_one_token_per_patch(encoder)
        channels, width = channels_and_width(encoder)
        pixels = self.patch_size[0] * self.patch_size[1] * channels
        self.decoder_embed = nn.Linear(width, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(decoder_dim))
        blocks = [Block(decoder_dim, decoder_heads, qkv_bias=True) for _ in range(decoder_depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(decoder_dim))
        self.decoder_pred = nn.Linear(decoder_dim, pixels)
        self.init_decoder(next(encoder.parameters()))

    def init_decoder(self, weight: Tensor) -> None:
        """The paper's initial weights (appendix A.1), with the dtype of ``weight``, where it is."""
        nn.init.normal_(self.mask_token, std=0.02)
        self.mask_token.data = self.mask_token.data.to(weight)
        for part in (self.decoder_embed, self.decoder, self.decoder_pred):
            for module in part.to(weight).modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    @property
    def criterion(self) -> CombinedAdversarialLoss:
        """What measures the error: the strategy's loss, or the mean square."""
        return MEAN_SQUARE if self.masking.loss is None else self.masking.loss

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Output:
        """The loss of ``(B, C, H, W)`` images under the strategy's mask.

        Args:
            images: as the strategy takes them.
            valid: as for :class:`MaskingStrategy`; patches that are not valid are shown to the
                encoder as 0, never masked and never in the loss.
        """
        patch_mask = self.make_mask(images, valid)
        images = patch_mask.fill_invalid(images)
        pred = self.predict(images, patch_mask)
        error = self.criterion.error(pred, self.target(images))
        counted: Tensor | None = patch_mask.predicted
        if self.criterion.reconstruct == "all":
            counted = patch_mask.counted
        reconstruction = error.mean() if counted is None else masked_mean(error, counted)
        loss = self.masking.total_loss(reconstruction, error, patch_mask)
        return Output(loss, reconstruction, pred, error, patch_mask)

    def make_mask(self, images: Tensor, valid: Tensor | None) -> PatchMask:
        """The strategy's mask; one that does not know ``valid`` is not given it in vain."""
        return self.masking(images) if valid is None else self.masking(images, valid=valid)

    def predict(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L, p_h * p_w * C)`` patches, on the target's scale.

        Args:
            images: ``(B, C, H, W)``.
            patch_mask: over their grid; where counts differ, each image comes out as alone.

        Raises:
            ValueError: as :func:`masked`.
        """
        with masked(self.encoder, patch_mask):
            latent = self.decoder_embed(self.encoder.forward_features(images))
        prefix, visible = latent[:, : self.prefix], latent[:, self.prefix :]
        tokens = patch_mask.scatter(visible, self.mask_token)
        tokens = tokens + build_sincos2d_pos_embed(
            list(patch_mask.grid), tokens.shape[2], device=tokens.device, dtype=tokens.dtype
        )
        tokens = patch_mask.gather_decoded(tokens)
        tokens = self.decoder(torch.cat([prefix, tokens], 1))
        return patch_mask.scatter_decoded(self.decoder_pred(tokens[:, self.prefix :]))

    def target(self, images: Tensor) -> Tensor:
        """``(B, L, p_h * p_w * C)`` patches to predict."""
        patches = patchify(images, self.patch_size)
        return normalise_patches(patches) if self.norm_pix else patches

    def error_under(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L)`` error of each patch under a given mask.

        ``adversarial_gain(functools.partial(mae.error_under, images), mae.masking(images))``.
        """
        images = patch_mask.fill_invalid(images)
        return self.criterion.error(self.predict(images, patch_mask), self.target(images))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, valid: Tensor | None = None) -> tuple[PatchMask, Tensor]:
        """Masks and predicted images, for :func:`amn_masking.visualize.draw_masks`.

        Args:
            images: ``(B, C, H, W)``, as for training.
            valid: as for training.

        Returns:
            The strategy's mask, and ``(B, C, H, W)`` predictions on the scale of the images. With
            ``norm_pix`` each patch is given the mean and the deviation of the input's.
        """
        patch_mask = self.make_mask(images, valid)
        images = patch_mask.fill_invalid(images)
        pred = self.predict(images, patch_mask)
        if self.norm_pix:
            mean, deviation = patch_statistics(patchify(images, self.patch_size))
            pred = pred * deviation + mean
        return patch_mask, unpatchify(pred, self.patch_size, patch_mask.grid)


def channels_and_width(encoder: Any) -> tuple[int, int]:
    """Channels of the images that go in, and of the tokens that come out."""
    if isinstance(encoder, NaFlexVit):
        return encoder.embeds.in_chans, encoder.num_features
    return encoder.patch_embed.proj.in_channels, encoder.num_features


def check_one_token_per_patch(encoder: nn.Module) -> None:
    """Refuse a Hiera whose last stage has several tokens for a mask unit."""
    if isinstance(encoder, Hiera):
        tokens = encoder.mu_size // math.prod(encoder.q_stride) ** encoder.q_pool
        if tokens != 1:
            raise ValueError(
                "the decoder expected one token for each mask unit, but this Hiera's last stage "
                f"has {tokens}; it pools {encoder.q_pool} times by {encoder.q_stride} within units "
                f"of {encoder.mask_unit_size}, as the published models do not"
            )
