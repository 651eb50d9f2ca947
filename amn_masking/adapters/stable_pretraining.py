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


class TokensMaskedMixin(nn.Module):
    """Lets stable-pretraining's ``MAE`` take a strategy where it takes a masking module::

        class Learned(TokensMaskedMixin, MAE):
            pass

        model = Learned("vit_base_patch16_224", masking=AdversarialMasking(0.5, patch_size=16))

    A masking module of the library is handed tokens, but a strategy scores images: the mask is made
    in front of the encoder, which is then handed it. The strategy is a submodule of the model, and
    of the encoder no part. In eval, and with a masking module of the library, the model is the
    stock one, bit for bit.

    Of the class beside it this is used: ``forward(images)``, which returns an object with ``loss``,
    ``predictions`` and ``mask``; ``encoder``, which calls ``masking(tokens, rows, columns)`` in
    training and has ``patch_size_h`` and ``patch_size_w``; ``loss_fn``, which reduces what
    ``_compute_loss(prediction, target) -> (B, L)`` gives to the mean over the masked patches.

    Attributes:
        masking: a :class:`MaskingStrategy`, or a masking module of the library.
    """

    encoder: Any
    loss_fn: Any

    def __init__(self, *args: Any, masking: nn.Module | None = None, **kwargs: Any) -> None:
        learned = isinstance(masking, MaskingStrategy)
        super().__init__(*args, masking=None if learned else masking, **kwargs)
        if learned:
            self.masking = masking

    def forward(self, images: Tensor) -> Any:
        """The model's own forward pass, in training under the strategy's mask.

        Args:
            images: ``(B, C, H, W)``.

        Returns:
            What the model returns; ``loss`` has the adversarial terms added.

        Raises:
            ValueError: the strategy's patches or loss are not the model's, or the mask is one that
                :meth:`error_under` refuses.
        """
        strategy = self.masking
        if not isinstance(strategy, MaskingStrategy) or not self.training:
            stock: Any = super().forward
            return stock(images)
        name = type(self).__name__
        size = self.encoder.patch_size_h, self.encoder.patch_size_w
        strategy.require(
            name, size, normalised_targets=bool(getattr(self.loss_fn, "patch_normalize", False))
        )
        kind = getattr(self.loss_fn, "loss_type", None)
        check_followed(strategy.loss, name, criterion="L2" if kind == "mse" else None)
        patch_mask = strategy(images)
        outputs, error = self.masked_forward(images, patch_mask)
        outputs.loss = strategy.total_loss(outputs.loss, error, patch_mask)
        return outputs

    def error_under(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L)`` error of each patch under a given mask, for :mod:`amn_masking.meters`; in eval
        too.

        Raises:
            ValueError: the mask is not of these images and the model's patches, or has counts that
                differ between images, left-out patches or no masked patch.
        """
        return self.masked_forward(images, patch_mask)[1]

    def masked_forward(self, images: Tensor, patch_mask: PatchMask) -> tuple[Any, Tensor]:
        """What the model returns under the mask, and the ``(B, L)`` errors that its loss reduces.

        Raises:
            ValueError: as :meth:`error_under`; or the model masked or measured in another way.
        """
        name = type(self).__name__
        check_mask(patch_mask, name)
        size = self.encoder.patch_size_h, self.encoder.patch_size_w
        patch_mask.check_grid(images, size, name)
        errors: list[Tensor] = []
        compute: Callable[[Tensor, Tensor], Tensor] = self.loss_fn._compute_loss

        def recorded(prediction: Tensor, target: Tensor) -> Tensor:
            errors.append(compute(prediction, target))
            return errors[-1]

        def given(tokens: Tensor, rows: int, columns: int) -> SimpleNamespace:
            return SimpleNamespace(
                visible=patch_mask.gather_visible(tokens),
                mask=patch_mask.mask,
                ids_keep=patch_mask.ids_keep,
                ids_restore=patch_mask.ids_restore,
            )

        # The library masks in training only, and says so by the flags of the two modules alone.
        with (
            overridden(self, training=True),
            overridden(self.encoder, masking=given, training=True),
            overridden(self.loss_fn, _compute_loss=recorded),
        ):
            stock: Any = super().forward
            outputs = stock(patch_mask.fill_invalid(images))
        if outputs.mask is not patch_mask.mask or len(errors) != 1:
            raise ValueError(
                f"{name} was expected to mask by encoder.masking(tokens, rows, columns), to return "
                "that mask and to measure its errors by loss_fn._compute_loss(prediction, target) "
                "once, but did not; with this version of stable-pretraining override forward, and "
                "give masking.total_loss the error of each patch"
            )
        return outputs, errors[0]


def check_mask(patch_mask: PatchMask, name: str) -> None:
    """Refuse what the library's encoder, decoder or loss could not follow.

    Raises:
        ValueError: with the remedy.
    """
    kinds = {
        "counts that differ between images": patch_mask.padding is not None,
        "left-out patches": patch_mask.num_left_out,
        "no masked patch in the batch": patch_mask.masks_nothing,
    }
    for what in (kind for kind, there in kinds.items() if there):
        raise ValueError(
            f"{name} encodes the visible patches and predicts all others, at equal counts, but the "
            f"mask has {what}; use threshold=dict(type='quantile') without prediction_ratio, at "
            "a mask_ratio that masks a patch"
        )
