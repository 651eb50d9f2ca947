"""Any ViT of timm as a masked encoder: only the visible tokens go through its blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from amn_masking.adapters.overrides import overridden
from amn_masking.mask import PatchMask, invert_permutation

EQUAL_COUNTS = "needs the same number of visible mask units in every image"
NO_GATE = "takes its mask as booleans, through which no gradient flows"


def patch_size(encoder: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels of what a mask can hide: give it to the masking strategy.

    That is a patch; for Hiera a mask unit, 32 x 32 pixels in the published models.

    Raises:
        TypeError: not one of the four classes, or a stem of overlapping convolutions, behind which
            a visible token has already seen pixels of hidden ones.
    """
    if isinstance(encoder, NaFlexVit):
        size: Any = encoder.embeds.patch_size
    elif isinstance(encoder, Hiera):
        size = [unit * s for unit, s in zip(encoder.mask_unit_size, encoder.patch_stride)]  # noqa: B905
    elif not isinstance(encoder, (VisionTransformer, Eva)):
        raise TypeError(
            "expected a VisionTransformer, Eva, NaFlexVit or Hiera of timm, whose tokens can be "
            f"left out, got {type(encoder).__name__}"
        )
    elif not isinstance(encoder.patch_embed, PatchEmbed):
        raise TypeError(
            "expected an encoder that embeds each patch by itself (timm's PatchEmbed), got "
            f"{type(encoder).__name__} with {type(encoder.patch_embed).__name__}; its visible "
            "tokens would have seen hidden pixels"
        )
    else:
        size = encoder.patch_embed.patch_size
    if len(size) != 2:
        raise TypeError(f"expected an encoder of images, got one with units of {tuple(size)}")
    return (size[0], size[1])


def own_grid(encoder: Any) -> tuple[int, int] | None:
    """(rows, columns) of patches, or of mask units, that it is built for; None if it takes any."""
    if isinstance(encoder, Hiera):
        h, w = encoder.mask_spatial_shape
        return h, w
    fixed = not isinstance(encoder, NaFlexVit) and encoder.patch_embed.strict_img_size
    return encoder.patch_embed.grid_size if fixed else None


@contextmanager
def masked(encoder: nn.Module, patch_mask: PatchMask) -> Iterator[None]:
    """Context in which ``encoder.forward_features(images)`` encodes the visible tokens only.

    It returns ``(B, P + N, D)``: the P prefix tokens (class, registers; there may be none), then
    the visible tokens in the order of ``patch_mask.ids_keep``, each with the position embedding,
    rotary included, of its place. The mode, ``train()`` or ``eval()``, does not matter, a patch
    dropout of the model's own is off, and ``patch_mask.gate`` works.

    Where the images keep different numbers of patches, the rows behind an image's own count are
    padding: hidden from attention, so that each image comes out as it would alone, and of no
    meaning in the output.

    Hiera is given ``mask=`` in its own polarity (1 = keep) and gives the tokens of the visible
    mask units; it takes equal counts and no gate.

    Args:
        encoder: a ``VisionTransformer``, ``Eva``, ``NaFlexVit`` or ``Hiera`` of timm. Its state
            dict is the same inside and outside, and it is as before afterwards.
        patch_mask: made by a strategy with ``patch_size=patch_size(encoder)``.

    Raises:
        TypeError: another class, see :func:`patch_size`.
        ValueError: the encoder is masked already; Hiera with free counts or a gate. Inside,
            from the encoder: images of another grid than the mask's or the encoder's, NaFlex
            batches of patches, ``forward_intermediates``, and, with padding, the pooling head.
    """
    patch_size(encoder)  # refuses other classes
    if "masked_by" in vars(encoder):
        raise ValueError(
            f"this {type(encoder).__name__} is masked already; leave the first masked(...) before "
            "the second"
        )
    if isinstance(encoder, Hiera):
        replaced = visible_units(encoder, patch_mask)
    else:
        replaced = visible_tokens(encoder, patch_mask)
    replaced["forward_features"] = checked(replaced["forward_features"], encoder, patch_mask)
    replaced["masked_by"] = patch_mask
    replaced["forward_intermediates"] = refuse(
        "forward_intermediates puts tokens back into an image, which a masked encoder has not got; "
        "use forward_features"
    )
    if patch_mask.padding is not None:
        replaced["forward_head"] = refuse(
            "the images of this batch keep different numbers of patches, and the head would pool "
            "their padding; use forward_features, or threshold=dict(type='quantile')"
        )
    with overridden(encoder, **replaced):
        yield


def checked(
    forward: Callable[..., Any], encoder: nn.Module, patch_mask: PatchMask
) -> Callable[..., Any]:
    """``forward_features`` with a look first at whether the images fit the mask and the encoder."""
    size, host, grid = patch_size(encoder), type(encoder).__name__, own_grid(encoder)

    def masked_forward(*args: Any, **kwargs: Any) -> Any:
        images = args[0] if args else kwargs.get("x", kwargs.get("patches"))
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise ValueError(
                "a masked encoder expected images (B, C, H, W), got "
                f"{tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__}; "
                "NaFlex batches of patches with patch_coord have a grid for each image, a mask has "
                "one for all"
            )
        patch_mask.check_grid(images, size, host, grid)
        return forward(*args, **kwargs)

    return masked_forward


def visible_tokens(encoder: nn.Module, patch_mask: PatchMask) -> dict[str, Any]:
    """What a ViT, Eva or NaFlexVit is given for the time of the mask: a patch dropout of ours.

    All three apply it after the position embedding; Eva and NaFlexVit gather the rotary one, shared
    or of each layer, by the ids that it returns.
    """
    prefix: Any = encoder.num_prefix_tokens
    forward: Any = encoder.forward_features
    hidden = patch_mask.padding

    def patch_drop(tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        patches = patch_mask.gather_visible(tokens[:, prefix:])
        kept = torch.cat([tokens[:, :prefix], patches], 1)
        return kept if isinstance(encoder, VisionTransformer) else (kept, patch_mask.ids_keep)

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        if hidden is not None:
            if "attn_mask" not in inspect.signature(forward).parameters:
                raise ValueError(
                    f"{type(encoder).__name__} of timm {timm.__version__} cannot hide padding from "
                    "attention, but this mask leaves the count free; take a newer timm, or "
                    "threshold=dict(type='quantile')"
                )
            if kwargs.get("attn_mask") is not None:
                raise ValueError(
                    "a mask with different counts hides its padding with attn_mask and expected "
                    "none from the caller, got one"
                )
            # As an argument and not by hooks on the blocks: activation checkpointing runs them
            # again when this context is over. (B, 1, 1, P + N), True = attend.
            attended = nn.functional.pad(~hidden, (prefix, 0), value=True)
            kwargs["attn_mask"] = attended[:, None, None, :]
        # NaFlexVit has patch dropout in train() only and asks its own flag, which nothing else
        # does; the modules below keep theirs.
        flag = {"training": True} if isinstance(encoder, NaFlexVit) else {}
        with overridden(encoder, **flag):
            features = forward(*args, **kwargs)
        if features.shape[1] != prefix + patch_mask.num_visible:
            raise ValueError(
                f"{type(encoder).__name__} of timm {timm.__version__} encoded {features.shape[1]} "
                f"tokens instead of {prefix + patch_mask.num_visible}: patch_drop is left out; "
                "take timm 1.0.20 or newer"
            )
        return features

    return {"patch_drop": patch_drop, "forward_features": forward_features}


def visible_units(encoder: Hiera, patch_mask: PatchMask) -> dict[str, Any]:
    """What a Hiera is given for the time of the mask: a boolean over its mask units."""
    if patch_mask.padding is not None:
        raise ValueError(
            f"Hiera {EQUAL_COUNTS}, but this mask leaves the count free; use "
            "threshold=dict(type='quantile')"
        )
    if patch_mask.gate:
        raise ValueError(f"Hiera {NO_GATE}; leave out gate=True")
    forward = encoder.forward_features
    rows = torch.arange(patch_mask.mask.shape[0], device=patch_mask.mask.device)[:, None]

    def forward_features(*args: Any, **kwargs: Any) -> Any:
        kwargs["mask"] = patch_mask.mask == 0  # Hiera's polarity: True = keep
        out = forward(*args, **kwargs)
        # Hiera keeps the units in row-major order; we promise that of ids_keep.
        rank = invert_permutation(patch_mask.ids_keep.argsort(1))
        tokens, stages = out if isinstance(out, tuple) else (out, None)
        # (B, U * N, D), U tokens for each unit, the unit running fastest.
        units = tokens.unflatten(1, (-1, patch_mask.num_visible)).transpose(1, 2)
        tokens = units[rows, rank].transpose(1, 2).flatten(1, 2)
        return tokens if stages is None else (tokens, [stage[rows, rank] for stage in stages])

    return {"patch_drop_rate": 0.0, "forward_features": forward_features}


def refuse(message: str) -> Callable[..., Any]:
    """A function that raises a ValueError."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise ValueError(message)

    return refused
