"""``masking=`` for a self-supervised method of mmpretrain."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from mmengine.logging import print_log
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from amn_masking import strategies
from amn_masking.adapters.mmpretrain.checks import MaskableMethod
from amn_masking.adapters.mmpretrain.model_signals import bind
from amn_masking.adapters.mmpretrain.patch_error import patch_error, seen_by_loss
from amn_masking.adapters.mmpretrain.proof import check_asked, compared
from amn_masking.adapters.mmpretrain.ranks import warn_if_ranks_draw_alike
from amn_masking.adapters.mmpretrain.valid import fill_invalid, valid_of
from amn_masking.checks import check_honoured, is_compiling
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.meters import mask_statistics
from amn_masking.patches import patch_statistics, patchify, unpatchify
from amn_masking.strategies import AdversarialMasking, MaskingStrategy

EXPECTED = "'AdversarialMasking', 'RandomMasking' or another strategy"


class MaskedMethod(MaskableMethod):
    """Gives a method of mmpretrain the argument ``masking``.

    The method's own ``loss`` runs unchanged. Around it the strategy makes the mask, the method is
    made to use it, the prediction and its target are seen on their way into the head's loss, and
    the adversarial terms are added. The masking network is a submodule like any other: one
    optimizer, one backward, one checkpoint.

    Args:
        masking: a strategy or its config; None leaves the method as it is, bit for bit.

    Raises:
        TypeError: ``masking`` is not a masking strategy.
        ValueError: an unknown strategy, or one that does not suit this method.
    """

    # Called when a model with masking is built; the adapter puts runner.install here.
    prepare_process: ClassVar[Callable[[], None]] = lambda: None

    def __init__(
        self, *args: Any, masking: Mapping[str, Any] | MaskingStrategy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.masking: Any = None  # or a MaskingStrategy
        self.proved = False  # whether the encoder was seen to use the mask that it was given
        if masking is not None:
            self.masking = self.build_masking(masking)
            self.built_ratio = self.own_mask_ratio()
            type(self).prepare_process()

    def build_masking(self, masking: Mapping[str, Any] | MaskingStrategy) -> MaskingStrategy:
        """The strategy, with the method's own mask ratio and loss as defaults; from a config also
        with its patch size and channels.
        """
        self.check_method()
        if isinstance(masking, Mapping):
            masking = self.from_config(dict(masking))
        if not isinstance(masking, MaskingStrategy):
            cls = type(masking)
            raise TypeError(
                f"masking={cls.__module__}.{cls.__name__} is not a masking strategy; expected "
                f"None, {EXPECTED} or a MaskingStrategy of your own (where a class of yours has "
                "the name of one of amn_masking's, write type='amn_masking.' before it)"
            )
        self.give_defaults(masking)
        self.check_strategy(masking)
        bind(masking, self)
        return masking

    def from_config(self, config: dict[str, Any]) -> Any:
        """The object that ``config`` describes, with the method's own defaults."""
        kind = config.get("type")
        cls = MMPRETRAIN_MODELS.get(kind) if isinstance(kind, str) else kind
        if cls is None:
            raise ValueError(
                f"masking= expected dict(type=...) with a registered strategy, {EXPECTED}, "
                f"got type {kind!r}"
            )
        parameters = inspect.signature(cls).parameters
        # Every strategy has this ratio, one's own without the argument and a wrapper too.
        ratio = None if "prediction_ratio" in parameters else config.pop("prediction_ratio", None)
        leave_out_foreign(config, cls, parameters)
        if isinstance(config.get("masking"), Mapping):  # a strategy around another one
            config["masking"] = self.build_masking(config["masking"])
        for key, value in self.masking_defaults().items():
            if key in parameters:
                given = config.get(key)
                if given is None:
                    config[key] = value
                elif isinstance(value, Mapping) and isinstance(given, Mapping):
                    config[key] = {**value, **given}
        masking = MMPRETRAIN_MODELS.build(config)
        if ratio is not None:
            masking.prediction_ratio = ratio
        return masking

    def give_defaults(self, masking: MaskingStrategy) -> None:
        """Give a strategy that was given no ratio, or no loss, the method's own."""
        if masking.takes_ratio and not masking.own_ratio:
            masking.default_ratio = self.own_mask_ratio()
        if "loss" not in (defaults := self.masking_defaults()):
            return
        loss = CombinedAdversarialLoss(**defaults["loss"])
        for strategy in masking.modules():  # a wrapper has the loss of the strategy in it
            if isinstance(strategy, AdversarialMasking) and not strategy.own_loss:
                strategy.give_default_loss(loss)

    def init_weights(self) -> None:
        super().init_weights()
        if self.masking is not None:
            warn_if_ranks_draw_alike()

    def follow_ratio(self) -> None:
        """Mask the share that the method says now, where the strategy was given none.

        A hook may move the backbone's ``mask_ratio`` during training. A strategy that has a ratio
        of its own is then refused.
        """
        ratio = self.own_mask_ratio()
        if ratio == self.built_ratio:
            return
        self.masking.check_takes_ratio()  # a wrapper may draw what a strategy in it would follow
        if self.masking.own_ratio:
            raise ValueError(
                f"the method's own mask_ratio was set from {self.built_ratio:g} to {ratio:g}, but "
                f"{type(self.masking).__name__} has its own, which counts; set "
                "model.masking.mask_ratio, or leave mask_ratio out of masking="
            )
        self.built_ratio = ratio
        self.masking.default_ratio = ratio

    def make_mask(
        self, images: Tensor, data_samples: Sequence[DataSample] | None = None
    ) -> PatchMask:
        """The strategy's mask of ``(B, C, H, W)`` images.

        The data samples may say by their field ``valid`` where there is no data, see
        :func:`~amn_masking.adapters.mmpretrain.valid.valid_of`.
        """
        valid = valid_of(data_samples or (), images)
        if valid is None:
            return self.masking(images)
        patch_mask = self.masking(images, valid=valid)
        check_honoured(valid, patch_mask.valid, type(self.masking).__name__)
        return patch_mask

    def inject(self, patch_mask: PatchMask) -> AbstractContextManager:
        """Context in which the method uses ``patch_mask`` in place of a mask that it makes."""
        return nullcontext()

    def with_mask(self, data_samples: list[DataSample], patch_mask: PatchMask) -> list[DataSample]:
        """The data samples, with ``patch_mask`` in them where the method takes it from there."""
        return data_samples

    def token_mask(self, patch_mask: PatchMask) -> Tensor:
        """``patch_mask`` as the method's encoder takes it: ``(B, L)``, 1 = masked."""
        return patch_mask.mask

    def encoder_mask(self, args: tuple, kwargs: dict, output: Any) -> Tensor | None:
        """The mask that the encoder was called with or returns, like :meth:`token_mask`.

        None where it does neither. The first step of a model compares the two.
        """
        return None

    def loss(
        self, inputs: Tensor | list[Tensor], data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """The method's loss under the strategy's mask, with the adversarial terms.

        Patches that are not valid, by the data samples' field ``valid`` or the strategy, are shown
        to the method as 0, never masked and never in the loss.

        Besides the losses the dict holds numbers for the log, without gradient:
        ``reconstruction``, ``adversarial``, the mask's statistics and the adversary's
        ``strength``.
        """
        if self.masking is None:
            return super().loss(inputs, data_samples, **kwargs)
        images = images_of(inputs)
        self.follow_ratio()
        patch_mask = self.make_mask(images, data_samples)
        losses, calls = self.masked_loss(patch_mask, inputs, data_samples, **kwargs)
        self.add_adversarial_terms(losses, patch_mask, calls)
        losses.update(mask_statistics(patch_mask))
        for name, value in self.masking.log_values().items():
            losses[name] = torch.as_tensor(value, dtype=torch.float32, device=images.device)
        return losses

    def masked_loss(
        self,
        patch_mask: PatchMask,
        inputs: Tensor | list[Tensor],
        data_samples: list[DataSample],
        **kwargs: Any,
    ) -> tuple[dict[str, Tensor], list[tuple]]:
        """The method's own loss under a given mask, and what its loss module was called with."""
        self.check_mask(patch_mask, images_of(inputs))
        inputs = fill_invalid(inputs, patch_mask)
        samples = self.with_mask(data_samples, patch_mask)
        with (
            nullcontext()
            if self.proved or is_compiling()
            else compared(self.backbone, self.encoder_mask, self.token_mask(patch_mask)),
            self.inject(patch_mask),
            seen_by_loss(self.loss_module, patch_mask) as calls,
        ):
            losses = super().loss(inputs, samples, **kwargs)
        check_asked(self, samples or [])
        self.proved = True
        return losses, calls

    def patch_error(self, patch_mask: PatchMask, calls: list[tuple]) -> Tensor:
        """``(B, L)`` error of each patch, as the method's loss measures it."""
        combined = self.adversarial_loss(self.masking) or CombinedAdversarialLoss(
            **self.masking_defaults()["loss"]
        )
        return patch_error(self.loss_module, calls, patch_mask, combined)

    @torch.no_grad()
    def error_under(
        self,
        patch_mask: PatchMask,
        inputs: Tensor | list[Tensor],
        data_samples: list[DataSample],
        **kwargs: Any,
    ) -> Tensor:
        """``(B, L)`` error of each patch under a given mask.

        By the method's own forward pass, in the mode that the model is in.
        """
        _, calls = self.masked_loss(patch_mask, inputs, data_samples, **kwargs)
        return self.patch_error(patch_mask, calls)

    def add_adversarial_terms(
        self, losses: dict[str, Tensor], patch_mask: PatchMask, calls: list[tuple]
    ) -> None:
        """Put the adversarial terms into ``losses``, and the loss's parts for the log."""
        # mmengine minimises the sum of everything whose name holds 'loss'.
        reconstruction = torch.stack([v.detach() for k, v in losses.items() if "loss" in k]).sum()
        combined = self.adversarial_loss(self.masking)
        if combined is self.loss_module:
            with torch.no_grad():
                terms = combined.terms(calls[0][0], calls[0][1], patch_mask)
            reconstruction, adversarial = terms.reconstruction, terms.adversarial
        elif combined is not None:
            error = self.patch_error(patch_mask, calls)
            adversarial, objective = combined.adversarial_terms(error, patch_mask)
            extra = combined.lambda_adv * (adversarial + objective)
            if "loss" in losses:
                losses["loss"] = losses["loss"] + extra
            else:
                losses["loss_adversarial"] = extra
        losses["reconstruction"] = reconstruction
        if combined is not None:
            losses["adversarial"] = adversarial.detach()

    @torch.no_grad()
    def reconstruct(
        self, inputs: Tensor | list[Tensor], data_samples: list[DataSample] | None = None
    ) -> tuple[PatchMask, Tensor | None]:
        """Masks and predicted images, for pictures.

        Args:
            inputs: ``(B, C, H, W)``, preprocessed; of a list the first.
            data_samples: of these images, for their field ``valid``; None if they have none.

        Returns:
            The mask, and ``(B, C, H, W)`` predictions on the scale of the inputs, or None where
            the method does not predict pixels. With ``norm_pix`` each patch is given the mean
            and the deviation of the input's.

        Raises:
            ValueError: the model has no masking strategy.
        """
        if self.masking is None:
            raise ValueError("reconstruct expected a model with masking=dict(type=...), got None")
        images = images_of(inputs)
        samples = data_samples or [DataSample() for _ in images]
        patch_mask = self.make_mask(images, samples)
        if not self.predicts_pixels:
            return patch_mask, None
        _, calls = self.masked_loss(patch_mask, inputs, samples)
        pred = calls[0][0]
        if pred.dim() == 4:
            return patch_mask, pred
        if getattr(self.head, "norm_pix", False):
            shown = patch_mask.fill_invalid(images)
            mean, deviation = patch_statistics(patchify(shown, self.patch_size))
            pred = pred * deviation + mean
        return patch_mask, unpatchify(pred, self.patch_size, patch_mask.grid)


def leave_out_foreign(config: dict[str, Any], cls: type, parameters: Mapping[str, Any]) -> None:
    """Take out of ``config`` what other strategies take and ``cls`` does not, and say so.

    So that ``model.masking.type=RandomMasking`` on the command line is an ablation of a config
    that says more about its masks. What no strategy takes is left in, for ``cls`` to refuse.
    """
    known: set[str] = set()
    for name in strategies.__all__:
        known |= inspect.signature(getattr(strategies, name)).parameters.keys()
    foreign = {key: config.pop(key) for key in list(config) if key in known - parameters.keys()}
    if foreign:
        print_log(
            f"masking.type is {cls.__name__}, which does not take "
            f"{', '.join(f'{key}={value}' for key, value in foreign.items())}: left out",
            logger="current",
            level=logging.WARNING,
        )


def images_of(inputs: Tensor | list[Tensor]) -> Tensor:
    """``(B, C, H, W)`` images of a batch: itself, or the first of several views."""
    images = inputs if isinstance(inputs, Tensor) else inputs[0]
    if images.dim() == 3:
        raise ValueError(
            f"expected a batch of images (B, C, H, W), got a list of {tuple(images.shape)}; does "
            "the dataloader have collate_fn=dict(type='pseudo_collate')? Use 'default_collate'"
        )
    return images
