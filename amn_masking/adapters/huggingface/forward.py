"""One forward pass of a ``ViTMAEForPreTraining`` under a given mask."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from amn_masking.adapters.decoded import decoded_only
from amn_masking.adapters.own_loss import check_followed
from amn_masking.mask import PatchMask
from amn_masking.patches import normalise_patches, patchify
from amn_masking.strategies import MaskingStrategy

NAME = "ViTMAEForPreTraining"
EQUAL_COUNTS = "keeps the same number of patches of every image"
NO_GATE = "takes its mask as an order of the patches, through which no gradient flows"


class MaskedPass(NamedTuple):
    """What :func:`masked_forward` gives.

    Attributes:
        outputs: the model's. ``outputs.loss`` is what to minimise, adversarial terms included;
            ``outputs.mask`` is 1 where it counts: at the predicted patches, which are the masked
            ones unless a ``prediction_ratio`` leaves some out. ``outputs.logits`` of those are 0.
        reconstruction: the model's own loss, a scalar.
        error: ``(B, L)`` per-patch error; its mean over the predicted is ``reconstruction``.
        patch_mask: the mask of this pass.
    """

    outputs: Any
    reconstruction: Tensor
    error: Tensor
    patch_mask: PatchMask


def masked_forward(
    model: nn.Module,
    pixel_values: Tensor,
    masking: MaskingStrategy | PatchMask,
    valid: Tensor | None = None,
    **kwargs: Any,
) -> MaskedPass:
    """One forward pass of a ``ViTMAEForPreTraining`` under a mask of the strategy's making.

    The mask is made, and the adversarial terms are added, inside the model's own call: so that a
    wrapper such as DistributedDataParallel sees the masking network take part. The share of masked
    patches is the strategy's; ``config.mask_ratio`` does not count.

    Args:
        model: a ``ViTMAEForPreTraining``, or a wrapper around one.
        pixel_values: ``(B, C, H, W)``.
        masking: a strategy; or a mask that is made already, where nothing is to be learned.
        valid: as for :class:`MaskingStrategy`; patches that are not valid are shown to the encoder
            as 0, never masked and never in the loss. A mask that is made already has its own.
        **kwargs: the model's other arguments, such as ``interpolate_pos_encoding=True``.

    Raises:
        TypeError: no ``ViTMAEForPreTraining`` in the model, or no strategy.
        ValueError: the images or the mask do not have the model's grid, the mask has free counts
            or a gate, which the model cannot take, or the strategy's loss says what the model's
            own loss would not follow.
    """
    if not isinstance(masking, (MaskingStrategy, PatchMask)):
        raise TypeError(
            "masking expected a MaskingStrategy such as AdversarialMasking, or a PatchMask, got "
            f"{type(masking).__name__}"
        )
    vit_mae = find_vit_mae(model)
    config = vit_mae.config
    size = patch_size(config)
    if isinstance(masking, MaskingStrategy):
        masking.require(NAME, size, EQUAL_COUNTS, NO_GATE, config.norm_pix_loss)
        check_followed(masking.loss, NAME, criterion="L2")
    side = vit_mae.vit.embeddings.patch_embeddings.image_size
    any_size = kwargs.get("interpolate_pos_encoding")
    own_grid = None if any_size else (side[0] // size[0], side[1] // size[1])
    given: dict[str, Any] = {} if valid is None else {"valid": valid}
    passes: list[MaskedPass] = []
    masks: list[PatchMask] = []

    def hand_in(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        images = kwargs["pixel_values"]
        patch_mask = masking if isinstance(masking, PatchMask) else masking(images, **given)
        patch_mask.check_grid(images, size, NAME, own_grid)
        if patch_mask.visible_counts is not None:
            raise ValueError(
                f"{NAME} {EQUAL_COUNTS}, but those of this mask differ; use a strategy with "
                "threshold=dict(type='quantile')"
            )
        masks.append(patch_mask)
        # The model keeps int(L * (1 - mask_ratio)): half a patch keeps it clear of rounding.
        config.mask_ratio = 1 - (patch_mask.num_visible + 0.5) / patch_mask.num_patches
        # It sorts the noise, so a patch's place in the order is noise that gives that order.
        filled = patch_mask.fill_invalid(images)
        return args, {**kwargs, "pixel_values": filled, "noise": patch_mask.ids_restore.float()}

    def count_predicted(module: nn.Module, args: tuple, outputs: tuple) -> tuple | None:
        # The model's loss counts the mask that its embeddings return.
        tokens, _, ids_restore = outputs
        return (tokens, masks[0].predicted, ids_restore) if masks[0].num_left_out else None

    def add_terms(module: nn.Module, args: tuple, kwargs: dict, outputs: Any) -> None:
        error = patch_error(outputs.logits, kwargs["pixel_values"], config)
        reconstruction = outputs.loss
        if isinstance(masking, MaskingStrategy):
            outputs.loss = masking.total_loss(reconstruction, error, masks[0])
        passes.append(MaskedPass(outputs, reconstruction, error, masks[0]))

    own_ratio, decoder = config.mask_ratio, vit_mae.decoder
    first_layer = [*decoder.decoder_layers, decoder.decoder_norm][0]  # there may be no layers
    try:
        with (
            vit_mae.register_forward_pre_hook(hand_in, with_kwargs=True),
            vit_mae.vit.embeddings.register_forward_hook(count_predicted),
            decoded_only(first_layer, decoder.decoder_pred, lambda: masks[0]),
            vit_mae.register_forward_hook(add_terms, with_kwargs=True),
        ):
            outputs = model(pixel_values=pixel_values, **kwargs)
    finally:
        config.mask_ratio = own_ratio
    return passes[0]._replace(outputs=outputs)


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


def find_vit_mae(model: nn.Module) -> Any:
    """The ``ViTMAEForPreTraining`` that ``model`` is or wraps.

    Raises:
        TypeError: there is none.
    """
    for module in model.modules():
        if "vit" in module._modules and "decoder" in module._modules:
            return module
    raise TypeError(
        f"expected transformers' ViTMAEForPreTraining or a wrapper of it, got "
        f"{type(model).__name__}; ViTMAEModel is the encoder alone and has no error to learn from"
    )


def patch_size(config: Any) -> tuple[int, int]:
    """(height, width) in pixels of the model's patches."""
    size = config.patch_size
    return (size, size) if isinstance(size, int) else tuple(size)
