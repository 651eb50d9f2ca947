"""One forward pass of a masked-image model of transformers under a given mask."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from amn_masking.adapters.huggingface.bool_mask_in import BoolMaskIn
from amn_masking.adapters.huggingface.interface import Interface
from amn_masking.adapters.huggingface.noise_in import NoiseIn
from amn_masking.adapters.huggingface.unit_noise_in import UnitNoiseIn
from amn_masking.adapters.huggingface.video_in import VideoIn
from amn_masking.mask import PatchMask
from amn_masking.patches import masked_mean
from amn_masking.strategies import MaskingStrategy

INTERFACES: tuple[type[Interface], ...] = (NoiseIn, UnitNoiseIn, BoolMaskIn, VideoIn)


class MaskedPass(NamedTuple):
    """What :func:`masked_forward` gives.

    Attributes:
        outputs: the model's. ``outputs.loss`` is what to minimise, adversarial terms included.
            It counts the predicted patches, which are the masked ones unless a
            ``prediction_ratio`` leaves some out. ViTMAE's ``outputs.mask`` is 1 there, Hiera's
            ``outputs.bool_masked_pos`` False; their ``outputs.logits`` of what is left out are 0,
            and VideoMAE's are of the predicted patches alone.
        reconstruction: the model's own loss, a scalar; 0 where no patch of the batch is masked.
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
    """One forward pass of a masked-image model under a mask of the strategy's making.

    The model is a ``ViTMAEForPreTraining`` or a ``HieraForPreTraining``, which take ``noise``, or
    one that takes ``bool_masked_pos`` and reconstructs pixels: ``ViTForMaskedImageModeling`` and
    those of DeiT, Swin, Swinv2 and FocalNet, or ``VideoMAEForPreTraining``.

    The mask is made, and the adversarial terms are added, inside the model's own call: so that a
    wrapper such as DistributedDataParallel sees the masking network take part. The share of masked
    patches is the strategy's; ``config.mask_ratio`` does not count.

    Args:
        model: such a model, or a wrapper around one.
        pixel_values: ``(B, C, H, W)``; for VideoMAE ``(B, T, C, H, W)``, frames before channels,
            which the strategy gets as ``(B, C, T, H, W)``.
        masking: a strategy; or a mask that is made already, where nothing is to be learned.
        valid: as for :class:`MaskingStrategy`; patches that are not valid are shown to the encoder
            as 0, never masked and never in the loss. A mask that is made already has its own.
        **kwargs: the model's other arguments, such as ``interpolate_pos_encoding=True``.

    Raises:
        TypeError: no such model, or no strategy.
        ValueError: the images or the mask do not have the model's grid; the mask has free counts or
            a gate where the model cannot take them, or was given already as the model's argument;
            the model shows the encoder pixels of masked patches; the strategy's loss says what
            the model's own loss would not follow; or the model is to return a tuple.
    """
    if not isinstance(masking, (MaskingStrategy, PatchMask)):
        raise TypeError(
            "masking expected a MaskingStrategy such as AdversarialMasking, or a PatchMask, got "
            f"{type(masking).__name__}"
        )
    host = find_interface(model)
    if host.argument in kwargs:
        raise ValueError(
            f"{host.argument} expected from the strategy alone, whose mask {host.name} gets by it, "
            "got one already; leave it out of the arguments, or of the data"
        )
    strategy = masking if isinstance(masking, MaskingStrategy) else None
    host.check(strategy)
    any_size = bool(kwargs.get("interpolate_pos_encoding"))
    given: dict[str, Any] = {} if valid is None else {"valid": valid}
    passes: list[MaskedPass] = []
    masks: list[PatchMask] = []

    def hand_in(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        images = host.images_of(kwargs["pixel_values"])
        patch_mask = masking if isinstance(masking, PatchMask) else masking(images, **given)
        host.check_mask(patch_mask, images, strategy, any_size)
        masks.append(patch_mask)
        filled = host.pixel_values_of(patch_mask.fill_invalid(images))
        mask = {host.argument: host.hand_in(patch_mask, images)}
        return args, {**kwargs, "pixel_values": filled, **mask}

    def add_terms(module: nn.Module, args: tuple, kwargs: dict, outputs: Any) -> None:
        if isinstance(outputs, tuple):
            raise ValueError(
                f"{host.name}'s outputs were expected by name, got a tuple; leave out "
                "return_dict=False, of the call and of the config"
            )
        error = host.error(outputs, host.images_of(kwargs["pixel_values"]), masks[0])
        reconstruction = outputs.loss
        if masks[0].masks_nothing:  # the model may divide by the number of masked patches
            outputs.loss = reconstruction = masked_mean(error, masks[0].predicted)
        if strategy is not None:
            outputs.loss = strategy.total_loss(reconstruction, error, masks[0])
        passes.append(MaskedPass(outputs, reconstruction, error, masks[0]))

    with (
        host.model.register_forward_pre_hook(hand_in, with_kwargs=True),
        host.inside(lambda: masks[0]),
        host.model.register_forward_hook(add_terms, with_kwargs=True),
    ):
        outputs = model(pixel_values=pixel_values, **kwargs)
    return passes[0]._replace(outputs=outputs)


def find_interface(model: nn.Module) -> Interface:
    """That of the masked-image model that ``model`` is or wraps.

    Raises:
        TypeError: there is none.
    """
    for module in model.modules():
        for kind in INTERFACES:
            if kind.serves(module):
                return kind(module)
    raise TypeError(
        "expected transformers' ViTMAEForPreTraining or HieraForPreTraining, whose forward takes "
        "noise=, VideoMAEForPreTraining, or a model with a decoder of pixels whose forward takes "
        "bool_masked_pos=, such as SwinForMaskedImageModeling, or a wrapper of one, got "
        f"{type(model).__name__}; an encoder alone, such as ViTMAEModel, has no "
        "error to learn from, and BeitForMaskedImageModeling predicts tokens that a model of its "
        "own has to make"
    )
