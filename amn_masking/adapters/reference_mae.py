"""``masking`` for any class with the interface of the reference MAE, and for its forks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from amn_masking.adapters.decoded import decoded_only
from amn_masking.adapters.noise_seam import noise_answered, ratio_of
from amn_masking.adapters.own_loss import check_followed
from amn_masking.adapters.padding import hidden_padding
from amn_masking.adapters.reference_interface import (
    check_axes,
    check_masked,
    check_used,
    decoder_of,
    mask_for_a_ratio,
    own_patch_size,
    target_of,
)
from amn_masking.mask import PatchMask
from amn_masking.patches import masked_mean
from amn_masking.strategies import MaskingStrategy


class MaskedAutoencoderMixin(nn.Module):
    """Gives a masked autoencoder the attribute ``masking``::

        class Learned(MaskedAutoencoderMixin, MaskedAutoencoderViT):
            pass

        model = Learned(...)
        model.masking = AdversarialMasking(patch_size=16)

    The masking network is a submodule like any other: one optimizer, one backward, one checkpoint.
    With ``masking = None``, the default, the model is the stock one, bit for bit.

    The class beside it has, and only this is used of it:

    - ``forward(imgs, ..., mask_ratio=...)``, which returns ``(loss, pred, mask, ...)`` and hands
      ``mask_ratio`` down to ``random_masking(x, mask_ratio) -> (x_masked, mask, ids_restore)``,
      mask ``(B, L)``, 1 = masked;
    - ``patchify(imgs)``, giving ``(B, L, p * p * 3)``, the shape of ``pred``; ``norm_pix_loss``;
    - ``patch_embed.patch_size``, and ``grid_size`` where its ``strict_img_size`` says so;
    - for counts that differ between images: ``blocks``, ``decoder_embed`` and ``mask_token``;
    - for a ``prediction_ratio``: ``decoder_blocks``, in a list, and ``decoder_pred``.

    The mask that ``forward`` hands to its loss and returns is that of the predicted patches: all
    masked ones, unless a ``prediction_ratio`` leaves some out. The prediction of those is 0.

    The strategy's :class:`PatchMask` travels as ``mask_ratio``; a number that the caller gives
    there is not looked at. A caller may also give a PatchMask, which then counts, whatever
    ``masking`` is; patches that are not valid in it are shown to the encoder as 0.

    The mask that the model returns is compared with the strategy's, in the first step and whenever
    the counts or the mode change: a model that masks elsewhere, by a method or at a ratio of its
    own, would train in silence with another mask.

    Attributes:
        masking: a :class:`MaskingStrategy`, or None.
        mask_checked: mode and counts of the last mask that the model was seen to use.
        error_checked: whether :meth:`patch_error` was seen to be what the model minimises.
    """

    remedy = (
        "Its forward pass does not mask by random_masking(x, mask_ratio): override the method that "
        "it calls in its place, or use NoiseSeamMixin"
    )
    masking: Any
    patch_embed: Any
    patchify: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_module("masking", None)
        self.mask_checked: tuple[Any, ...] = ()
        self.error_checked = False

    def _load_from_state_dict(
        self,
        state: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        # torch takes every name below a registered module for known, also while that is None.
        if self.masking is None:
            unexpected += [name for name in state if name.startswith(f"{prefix}masking.")]

    def forward(self, imgs: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward pass, under the strategy's mask.

        Args:
            imgs: ``(B, C, H, W)``.

        Returns:
            What the model returns. The first of it, the loss, has the adversarial terms added; it
            is 0 where no patch of the batch is masked.

        Raises:
            ValueError: the strategy's patches are not the model's, the images or a given mask do
                not have its grid, the counts differ and the encoder cannot hide padding, patches
                are left out and the decoder has other names, the strategy's loss says what the
                model's would not follow, the model used another mask than the strategy's, or its
                loss is not what :meth:`patch_error` measures.
            TypeError: ``masking`` is not a strategy, or the model has another interface.
        """
        stock: Any = super().forward
        given = (
            kwargs.pop("mask_ratio") if isinstance(kwargs.get("mask_ratio"), PatchMask) else None
        )
        call = inspect.signature(stock).bind_partial(imgs, *args, **kwargs)
        given = given or call.arguments.get("mask_ratio")
        if self.masking is None and not isinstance(given, PatchMask):
            return stock(imgs, *args, **kwargs)
        name, size, grid = type(self).__name__, self.mask_patch_size(), None
        if size is not None:
            check_axes(imgs, size, name)
        if self.masking is not None:
            self.check_strategy(size)
        patch_mask = given if isinstance(given, PatchMask) else self.make_mask(imgs)
        self.hand_down(call, patch_mask)
        if size is not None:
            embed: Any = getattr(self, "patch_embed", None)
            if getattr(embed, "strict_img_size", False):
                grid = embed.grid_size
            patch_mask.check_grid(imgs, size, name, grid)
        imgs = patch_mask.fill_invalid(imgs)
        call.arguments[next(iter(call.arguments))] = imgs
        with self.injected(patch_mask), mask_for_a_ratio(name):
            outputs = stock(*call.args, **call.kwargs)
        self.check_mask(outputs, patch_mask)
        if self.masking is None and not patch_mask.masks_nothing:
            return outputs
        if not isinstance(outputs, tuple) or len(outputs) < 2:
            raise TypeError(
                f"expected {name}'s own forward to return (loss, pred, mask), got "
                f"{type(outputs).__name__}; override forward so that it does"
            )
        error = self.patch_error(imgs, outputs[1])
        if patch_mask.masks_nothing:  # the model divides by the number of masked patches
            return masked_mean(error, patch_mask.predicted), *outputs[1:]
        self.check_error(outputs[0], error, patch_mask)
        return self.masking.total_loss(outputs[0], error, patch_mask), *outputs[1:]

    def make_mask(self, imgs: Tensor) -> PatchMask:
        """The strategy's mask of ``(B, C, H, W)`` images. Override it where the model's have other
        axes, or several tokens for a patch.
        """
        return self.masking(imgs)

    def check_strategy(self, size: tuple[int, ...] | None) -> None:
        """Refuse a strategy that the model could not follow, also where the mask is given.

        Args:
            size: sides of the model's patches, None for any.

        Raises:
            TypeError: no strategy.
            ValueError: its patches, its reward or its loss are not the model's.
        """
        if not isinstance(self.masking, MaskingStrategy):
            raise TypeError(
                f"masking expected None or a masking strategy, such as AdversarialMasking("
                f"patch_size=16), got {type(self.masking).__name__}"
            )
        self.masking.require(
            type(self).__name__,
            size,
            normalised_targets=bool(getattr(self, "norm_pix_loss", False)),
        )
        check_followed(
            self.masking.loss, type(self).__name__, criterion="L2" if self.squares_errors else None
        )

    @property
    def squares_errors(self) -> bool:
        """Whether the errors are this class's: a model may override :meth:`patch_error`."""
        return type(self).patch_error is MaskedAutoencoderMixin.patch_error

    def mask_patch_size(self) -> tuple[int, ...] | None:
        """(height, width) in pixels of the model's patches, or as many numbers as its grid has
        dimensions; None where it does not say. For a model of clips that keeps the frames of a
        patch elsewhere, override it.
        """
        return own_patch_size(self)

    def hand_down(self, call: inspect.BoundArguments, patch_mask: PatchMask) -> None:
        """Put the mask where the model's own forward pass takes it down to its masking.

        Raises:
            TypeError: there is no such place.
        """
        if "mask_ratio" not in call.signature.parameters:
            raise TypeError(
                f"a mask travels as mask_ratio, but {type(self).__name__}'s own forward"
                f"{call.signature} has no such argument; override forward and hand it down to "
                "random_masking, or use NoiseSeamMixin"
            )
        call.arguments["mask_ratio"] = patch_mask

    @contextmanager
    def injected(self, patch_mask: PatchMask) -> Iterator[None]:
        """Context in which the model's own forward pass runs under the mask."""
        with hidden_padding(self, patch_mask.padding), self.decoding(patch_mask):
            yield

    def used_mask(self, outputs: Sequence[Any]) -> Any:
        """The mask that the model used, ``(B, L)``, 1 = masked: the third that ``forward`` returns.

        Override it where it is elsewhere.
        """
        return outputs[2] if len(outputs) > 2 else None

    def check_mask(self, outputs: Any, patch_mask: PatchMask) -> None:
        """The mask that the model used is the one that it was given.

        Reads one number back to the host, in the first step and when counts or mode are others
        than when it was last compared.

        Raises:
            ValueError: it is another, or none was returned.
        """
        counts = patch_mask.num_visible, patch_mask.num_predicted
        now = (self.training, *(() if patch_mask.padding is not None else counts))
        if self.mask_checked == now or not isinstance(outputs, tuple):
            return
        check_used(self.used_mask(outputs), patch_mask, type(self).__name__, self.remedy)
        self.mask_checked = now

    def decoding(self, patch_mask: PatchMask) -> AbstractContextManager[None]:
        """Context in which the model's decoder runs without the patches that are left out."""
        if patch_mask.num_left_out == 0:
            return nullcontext()
        return decoded_only(*decoder_of(self), patch_mask)

    def random_masking(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Visible tokens, mask and ids_restore, by a PatchMask where ``mask_ratio`` is one.

        The mask is the one that the model's loss counts, 1 = predicted.

        Args:
            x: ``(B, L, D)`` tokens without class token.
            args, kwargs: ``mask_ratio``, a mask; or what the model's own masking takes.

        Raises:
            TypeError: the model masks something else than tokens.
            ValueError: its tokens are not one for each patch of the mask.
        """
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, PatchMask))
        if (patch_mask := next(given, None)) is not None:
            check_masked(x, patch_mask, type(self).__name__)
            return patch_mask.gather_visible(x), patch_mask.predicted, patch_mask.ids_restore
        parent: Any = super()
        return parent.random_masking(x, *args, **kwargs)

    def patch_error(self, imgs: Tensor, pred: Tensor) -> Tensor:
        """``(B, L)`` error of each patch as the model's loss measures it: squared, its mean.

        Override it where the model's loss is another; it is then not checked against that loss.

        Args:
            imgs: ``(B, C, H, W)``.
            pred: what the model predicted, of the shape of ``patchify(imgs)``.

        Raises:
            TypeError: the model has no ``patchify(imgs)`` and ``norm_pix_loss``, or predicts no
                tensor.
            ValueError: ``pred`` has another shape.
        """
        target = target_of(self, imgs, pred)
        return (pred.float() - target).square().mean(-1)

    def error_under(self, imgs: Tensor, patch_mask: PatchMask, *args: Any, **kwargs: Any) -> Tensor:
        """``(B, L)`` error of each patch under a given mask, for :mod:`amn_masking.meters`; of a
        model whose ``forward`` takes more, with its other arguments.
        """
        outputs = self(imgs, *args, mask_ratio=patch_mask, **kwargs)
        return self.patch_error(imgs, outputs[1])

    def check_error(self, loss: Tensor, error: Tensor, patch_mask: PatchMask) -> None:
        """Once: the errors that the adversary gets are those that the model minimises.

        Reads two numbers back to the host, in the first step only.

        Raises:
            ValueError: their mean over the predicted patches is not the model's own loss.
        """
        if self.error_checked or not self.squares_errors or self.masking.loss is None:
            return
        own, ours = float(loss.detach()), float(masked_mean(error.detach(), patch_mask.predicted))
        # Half precision stays far below 1 %. NaN is for the training loop to see.
        if math.isfinite(own) and abs(own - ours) > 0.01 * abs(own):
            raise ValueError(
                f"{type(self).__name__}'s own loss is {own:.6g}, but the mean squared error of the "
                f"predicted patches is {ours:.6g}: its loss measures something else. Override "
                "patch_error(imgs, pred) to give that error of each patch, (B, L)"
            )
        self.error_checked = True


class NoiseSeamMixin(MaskedAutoencoderMixin):
    """The same for a class that masks by sorting uniform noise, in whatever method and with
    whatever results: its own code makes the strategy's mask, because its ``torch.rand`` of shape
    ``(B, L)`` is answered with the mask's order (:func:`noise_answered`).

    For forks whose ``random_masking`` has other arguments or results than the reference's, or
    another name. ``forward`` need not take ``mask_ratio`` if the ratio of the model is the
    strategy's; where it does, it gets :meth:`ratio_for` the mask. Counts that differ between
    images, a ``prediction_ratio`` and ``gate=True`` are refused: the model's own masking knows none
    of them.
    """

    remedy = (
        "It keeps other counts than int(L * (1 - mask_ratio)) of the patches, or the ratio is its "
        "own: override ratio_for(patch_mask) to give the ratio at which it keeps "
        "patch_mask.num_visible, or set the model's ratio to the strategy's"
    )

    def ratio_for(self, patch_mask: PatchMask) -> float:
        """The ``mask_ratio`` at which the model's own masking shows as many patches."""
        return ratio_of(patch_mask)

    def hand_down(self, call: inspect.BoundArguments, patch_mask: PatchMask) -> None:
        kinds = {
            "left-out patches": patch_mask.num_left_out,
            "counts that differ": patch_mask.padding is not None,
            "a gate": patch_mask.gate,
        }
        for what in (kind for kind, there in kinds.items() if there):
            raise ValueError(
                f"the strategy gives masks with {what}, which {type(self).__name__}'s own masking "
                "by noise cannot make; use MaskedAutoencoderMixin, or threshold=dict(type="
                "'quantile') without prediction_ratio and gate"
            )
        if "mask_ratio" in call.signature.parameters:
            call.arguments["mask_ratio"] = self.ratio_for(patch_mask)

    @contextmanager
    def injected(self, patch_mask: PatchMask) -> Iterator[None]:
        with noise_answered(patch_mask, type(self).__name__):
            yield
