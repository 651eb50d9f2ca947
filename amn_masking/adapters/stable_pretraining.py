"""Masks for stable-pretraining, whose encoder hands its tokens to a masking module."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from amn_masking.adapters.overrides import overridden
from amn_masking.adapters.own_loss import check_followed
from amn_masking.mask import PatchMask
from amn_masking.strategies import MaskingStrategy

EQUAL_COUNTS = "encodes the same number of visible patches of every image"


class NoMaskHandedIn(nn.Module):
    """The encoder's masking module where a strategy makes the masks: outside of the mixin's forward
    pass there is none, and the encoder would train on masks of its own.
    """

    def forward(self, tokens: Tensor, rows: int, columns: int) -> Any:
        raise ValueError(
            "the encoder was called in training without the strategy's mask: call forward of the "
            "class with TokensMaskedMixin, Learned.forward(self, images), not MAE.forward, and "
            "checkpoint the blocks or the whole model, not the encoder"
        )


class TokensMaskedMixin(nn.Module):
    """Lets stable-pretraining's ``MAE`` take a strategy where it takes a masking module::

        class Learned(TokensMaskedMixin, MAE):
            pass

        model = Learned("vit_base_patch16_224", masking=AdversarialMasking(patch_size=16))

    A masking module of the library is handed tokens, but a strategy scores images: the mask is made
    in front of the encoder, which is then handed it. The strategy is a submodule of the model, and
    of the encoder no part. In eval, and with a masking module of the library, the model is the
    stock one, bit for bit. As with any masking module the model's own ``mask_ratio`` and
    ``block_size`` do not count beside it.

    Of the class beside it this is used: ``forward(images)``, which returns an object with ``loss``,
    ``predictions`` and ``mask``; ``encoder``, which calls ``masking(tokens, rows, columns)`` in
    training and has ``patch_size_h`` and ``patch_size_w``; ``loss_fn``, which reduces what
    ``_compute_loss(prediction, target) -> (B, L)`` gives to the mean over the masked patches.

    Attributes:
        masking: a :class:`MaskingStrategy`, or a masking module of the library.

    Raises:
        TypeError: ``masking`` is neither.
    """

    encoder: Any
    loss_fn: Any
    masking: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.masking, nn.Module):
            raise TypeError(
                "masking expected a masking strategy, such as AdversarialMasking("
                "patch_size=16), or a masking module of the library, got "
                f"{type(self.masking).__name__}"
            )
        if isinstance(self.masking, MaskingStrategy):
            self.encoder.masking = NoMaskHandedIn()

    def forward(self, images: Tensor) -> Any:
        """The model's own forward pass, in training under the strategy's mask.

        Args:
            images: ``(B, C, H, W)``.

        Returns:
            What the model returns; ``loss`` has the adversarial terms added.

        Raises:
            ValueError: the strategy's patches, counts or loss are not the model's, or the mask is
                one that :meth:`error_under` refuses.
        """
        strategy = self.masking
        if not isinstance(strategy, MaskingStrategy) or not self.training:
            stock: Any = super().forward
            return stock(images)
        name = type(self).__name__
        strategy.require(
            name,
            self.mask_patch_size(),
            equal_counts=EQUAL_COUNTS,
            normalised_targets=bool(getattr(self.loss_fn, "patch_normalize", False)),
        )
        check_followed(strategy.loss, name, criterion="L2")
        patch_mask = strategy(images)
        outputs, error = self.masked_forward(images, patch_mask)
        outputs.loss = strategy.total_loss(outputs.loss, error, patch_mask)
        return outputs

    def mask_patch_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the encoder's patches."""
        return self.encoder.patch_size_h, self.encoder.patch_size_w

    def error_under(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L)`` error of each patch under a given mask, for :mod:`amn_masking.meters`; in eval
        too.

        Raises:
            TypeError: ``patch_mask`` is not a PatchMask.
            ValueError: the mask is not of these images and the model's patches, or has counts that
                differ between images, left-out patches or no masked patch.
        """
        return self.masked_forward(images, patch_mask)[1]

    def masked_forward(self, images: Tensor, patch_mask: PatchMask) -> tuple[Any, Tensor]:
        """What the model returns under the mask, and the ``(B, L)`` errors that its loss reduces.

        Raises:
            TypeError, ValueError: as :meth:`error_under`; or the model masked or measured in
                another way.
        """
        name, stock = type(self).__name__, super().forward
        check_mask(patch_mask, name)
        check_mean(self.loss_fn, name)
        patch_mask.check_grid(images, self.mask_patch_size(), name)
        errors: list[Tensor] = []
        compute: Callable[[Tensor, Tensor], Tensor] = self.loss_fn._compute_loss

        def recorded(prediction: Tensor, target: Tensor) -> Tensor:
            errors.append(compute(prediction, target))
            return errors[-1]

        def given(tokens: Tensor, rows: int, columns: int) -> SimpleNamespace:
            visible = patch_mask.gather_visible(tokens)
            return SimpleNamespace(
                visible=visible, mask=patch_mask.mask, ids_keep=patch_mask.ids_keep
            )

        # The library masks in training only, and says so by the flags of the two modules alone.
        with (
            overridden(self, training=True),
            overridden(self.encoder, masking=given, training=True),
            overridden(self.loss_fn, _compute_loss=recorded),
        ):
            outputs: Any = stock(patch_mask.fill_invalid(images))
        if outputs.mask is not patch_mask.mask or len(errors) != 1:
            raise ValueError(
                f"{name} was expected to mask by encoder.masking(tokens, rows, columns), to return "
                "that mask and to measure its errors by loss_fn._compute_loss(prediction, target) "
                "once, but did not. A wrapped encoder or loss hides them: use encoder.compile() "
                "for torch.compile(encoder), and wrap the blocks. With a version of "
                "stable-pretraining that has neither, override forward and give "
                "masking.total_loss the error of each patch"
            )
        return outputs, errors[0]


def check_mask(patch_mask: PatchMask, name: str) -> None:
    """Refuse what the library's encoder, decoder or loss could not follow.

    Raises:
        TypeError: not a PatchMask.
        ValueError: with the remedy.
    """
    if not isinstance(patch_mask, PatchMask):
        raise TypeError(
            f"{name} expected the PatchMask that a strategy made of these images, masking(images), "
            f"or PatchMask.from_mask of a tensor, got {type(patch_mask).__name__}"
        )
    if patch_mask.masks_nothing:
        raise ValueError(
            f"{name}'s loss is a mean over the masked patches, but no image of this batch has one; "
            "leave the mask out, model.encoder(images) in eval mode, and the loss with it"
        )
    kinds = {
        "counts that differ between images": patch_mask.padding is not None,
        "left-out patches": patch_mask.num_left_out,
    }
    for what in (kind for kind, there in kinds.items() if there):
        raise ValueError(
            f"{name} encodes the visible patches and predicts all others, at equal counts, but the "
            f"mask has {what}; use threshold=dict(type='quantile') without prediction_ratio"
        )


def check_mean(loss_fn: Any, name: str) -> None:
    """Refuse a loss that is not the mean over the masked patches, as which the adversary's is.

    Raises:
        ValueError: with the remedy.
    """
    said = {
        key: getattr(loss_fn, key)
        for key, expected in dict(reduction="mean", mask_only=True).items()
        if getattr(loss_fn, key, expected) != expected
    }
    if said:
        raise ValueError(
            f"{name} expected a loss that is the mean over the masked patches, reduction='mean' "
            f"and mask_only=True, beside which lambda_adv weighs the adversarial terms, got {said}"
        )
