"""A model of clips that takes ``bool_masked_pos``: ``VideoMAEForPreTraining``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.adapters.huggingface.bool_mask_in import NO_GATE
from amn_masking.adapters.huggingface.interface import EQUAL_COUNTS, Interface
from amn_masking.adapters.own_loss import check_followed
from amn_masking.mask import PatchMask
from amn_masking.patches import patchify
from amn_masking.strategies import MaskingStrategy


class VideoIn(Interface):
    """The encoder drops what is masked; the decoder gets it behind what is visible, each in the
    order of the grid.

    Masks are of patches in space and time, or tubes of them.
    """

    argument = "bool_masked_pos"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        return super().serves(module) and "videomae" in module._modules

    def images_of(self, pixel_values: Tensor) -> Tensor:
        channels = self.model.config.num_channels
        if pixel_values.dim() != 5 or pixel_values.shape[2] != channels:
            raise ValueError(
                f"{self.name} expected pixel_values of shape (B, T, C, H, W), frames before the "
                f"{channels} channels, got {tuple(pixel_values.shape)}; clips with the channels "
                "first are clips.transpose(1, 2)"
            )
        return pixel_values.transpose(1, 2)

    def pixel_values_of(self, images: Tensor) -> Tensor:
        return images.transpose(1, 2)

    def check(self, strategy: MaskingStrategy | None) -> None:
        if strategy is not None:
            normalised = self.model.config.norm_pix_loss
            strategy.require(self.name, self.patch_size, EQUAL_COUNTS, NO_GATE, normalised)
            check_followed(strategy.loss, self.name, criterion="L2")

    def check_mask(
        self,
        patch_mask: PatchMask,
        images: Tensor,
        strategy: MaskingStrategy | None,
        any_size: bool,
    ) -> None:
        size = (self.model.config.num_frames, *self.embeddings.image_size)
        own_grid = [side // part for side, part in zip(size, self.patch_size, strict=True)]
        patch_mask.check_grid(images, self.patch_size, self.name, own_grid)
        self.check_equal_counts(patch_mask)
        if patch_mask.masks_nothing:
            raise ValueError(
                f"{self.name} decodes masked patches alone, but no clip of this batch has one; "
                "leave the mask out, and the loss with it"
            )

    def hand_in(self, patch_mask: PatchMask, images: Tensor) -> Tensor:
        return patch_mask.predicted.bool()  # the patches that are decoded last, and compared

    @contextmanager
    def inside(self, patch_mask: Callable[[], PatchMask]) -> Iterator[None]:
        """What is left out passes for visible between encoder and decoder, and is in neither."""

        def hide_all(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            mask = patch_mask()
            if mask.num_left_out == 0:
                return None
            return args, {**kwargs, self.argument: mask.mask.bool()}

        def put_between(module: nn.Module, args: tuple, tokens: Tensor) -> Tensor | None:
            mask = patch_mask()
            if mask.num_left_out == 0:
                return None
            seen = seen_of_not_predicted(mask)
            places = tokens.new_zeros(*seen.shape, tokens.shape[-1])
            return places.masked_scatter(seen[:, :, None], tokens)

        def take_out(module: nn.Module, args: tuple) -> tuple | None:
            mask = patch_mask()
            if mask.num_left_out == 0:
                return None
            tokens, count, *others = args
            seen = tokens[:, :-count][seen_of_not_predicted(mask)].unflatten(0, (len(tokens), -1))
            return torch.cat([seen, tokens[:, -count:]], 1), count, *others

        with (
            self.model.videomae.register_forward_pre_hook(hide_all, with_kwargs=True),
            self.model.encoder_to_decoder.register_forward_hook(put_between),
            self.model.decoder.register_forward_pre_hook(take_out),
        ):
            yield

    def error(self, outputs: Any, images: Tensor, patch_mask: PatchMask) -> Tensor:
        predicted = patch_mask.predicted.bool()
        logits: Tensor = outputs.logits  # (B, P, D), in the order of the grid
        target = self.target(images)[predicted].view_as(logits)
        error = (logits - target).square().mean(-1)
        return error.new_zeros(predicted.shape).masked_scatter(predicted, error)

    def target(self, clips: Tensor) -> Tensor:
        """``(B, L, D)``: what the model is to predict of each patch of ``(B, C, T, H, W)``.

        Its pixels before ImageNet's mean and deviation were taken out, if they have three channels;
        with ``norm_pix_loss`` those of each channel less their mean and over their deviation.
        """
        from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        config = self.model.config
        if config.num_channels == 3:
            mean, std = (
                clips.new_tensor(values)[:, None, None, None]
                for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
            )
            clips = clips * std + mean
        patches = patchify(clips, self.patch_size)
        if not config.norm_pix_loss:
            return patches
        pixels = patches.unflatten(-1, (-1, config.num_channels))
        deviation = pixels.var(-2, keepdim=True).sqrt() + 1e-6
        return ((pixels - pixels.mean(-2, keepdim=True)) / deviation).flatten(-2)

    @property
    def embeddings(self) -> Any:
        return self.model.videomae.embeddings.patch_embeddings

    @property
    def patch_size(self) -> tuple[int, ...]:
        """(frames, height, width) of the model's patches."""
        return (self.embeddings.tubelet_size, *self.embeddings.patch_size)


def seen_of_not_predicted(patch_mask: PatchMask) -> Tensor:
    """``(B, L - P)`` bool: of the patches that are not predicted, in the order of the grid, those
    that are visible; the others are left out.
    """
    visible, others = patch_mask.mask == 0, patch_mask.predicted == 0
    return visible[others].unflatten(0, (len(visible), -1))
