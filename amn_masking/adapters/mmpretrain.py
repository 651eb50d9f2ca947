"""mmpretrain: its masked-image-modelling methods with any masking strategy.

Importing this module registers the methods under the ``amn_masking`` scope (``type=
'amn_masking.MAE'``), and strategies, loss and hook both there and, unprefixed, in mmpretrain's
own registry, because dicts that a ``mmpretrain::`` base brings in are looked up there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

try:
    from mmengine.registry import FUNCTIONS
    from mmpretrain.models import selfsup
    from mmpretrain.models.selfsup.base import BaseSelfSupervisor
    from mmpretrain.registry import HOOKS as MMPRETRAIN_HOOKS
    from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
except ImportError as error:
    raise ImportError(
        "the mmpretrain adapter expected mmengine, mmcv and mmpretrain, but one cannot be imported "
        f"({error}). Install amn-masking with its extra [mmpretrain], as in pip install -e "
        "'.[mmpretrain]', or with [onedl] for the maintained forks (one of the two per environment)"
    ) from error

from amn_masking.adapters.mmpretrain_hooks import MaskingPicturesHook
from amn_masking.adapters.mmpretrain_seams import (
    default_collate_any_scope,
    hidden_padding,
    overridden,
    pseudo_collate_any_scope,
    seen_by_loss,
    training_progress,
)
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.meters import mask_statistics
from amn_masking.patches import patchify, unpatchify
from amn_masking.registry import HOOKS, MODELS
from amn_masking.strategies import AdversarialMasking, MaskingStrategy, RandomMasking

STRATEGIES = "'AdversarialMasking' or 'RandomMasking'"


class MaskingMixin(BaseSelfSupervisor):
    """Gives a method of mmpretrain the argument ``masking``.

    The method's own ``loss`` runs unchanged. Around it the strategy makes the mask, the method is
    made to use it, the prediction and its target are seen on their way into the head's loss, and
    the adversarial terms are added. The masking network is a submodule like any other: one
    optimizer, one backward, one checkpoint.

    Args:
        masking: a strategy or its config; None leaves the method as it is, bit for bit.
    """

    def __init__(
        self, *args: Any, masking: Mapping[str, Any] | MaskingStrategy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        # Any: a MaskingStrategy, or None.
        self.masking: Any = None if masking is None else self.build_masking(masking)

    def build_masking(self, masking: Mapping[str, Any] | MaskingStrategy) -> MaskingStrategy:
        """The strategy, with the method's own patch size, channels and mask ratio as defaults.

        Raises:
            TypeError: ``masking`` is not a masking strategy.
            ValueError: an unknown strategy, or one that does not suit this method.
        """
        self.check_method()
        if isinstance(masking, Mapping):
            config = dict(masking)
            kind = config.get("type")
            cls = MMPRETRAIN_MODELS.get(kind) if isinstance(kind, str) else kind
            if cls is None:
                raise ValueError(
                    f"masking= expected dict(type=...) with a registered strategy, {STRATEGIES}, "
                    f"got type {kind!r}"
                )
            parameters = inspect.signature(cls).parameters
            for key, value in self.masking_defaults().items():
                if key in parameters:
                    given = config.get(key)
                    if given is None:
                        config[key] = value
                    elif isinstance(value, Mapping) and isinstance(given, Mapping):
                        config[key] = {**value, **given}
            masking = MMPRETRAIN_MODELS.build(config)
        if not isinstance(masking, MaskingStrategy):
            raise TypeError(
                f"masking={type(masking).__name__} is not a masking strategy; expected None, "
                f"{STRATEGIES} or a MaskingStrategy of your own"
            )
        if masking.free_counts and not self.takes_free_counts():
            raise ValueError(
                f"{type(self).__name__} with {type(self.backbone).__name__} needs the same number "
                f"of visible patches in every image, but {type(masking).__name__} leaves the count "
                "free; use threshold=dict(type='quantile')"
            )
        if getattr(masking, "gate", False) and not self.takes_gate():
            raise ValueError(
                f"{type(self).__name__} with {type(self.backbone).__name__} takes ids of visible "
                "patches, through which no gradient flows; leave out gate=True"
            )
        loss = self.adversarial_loss(masking)
        if loss is not None and loss is not self.head.loss_module and loss.reconstruct != "masked":
            raise ValueError(
                f"masking.loss says reconstruct={loss.reconstruct!r}, but the reconstruction term "
                f"is the head's {type(self.head.loss_module).__name__}; put it there: head=dict("
                "loss=dict(type='CombinedAdversarialLoss', reconstruct=...))"
            )
        return masking

    def adversarial_loss(self, masking: MaskingStrategy) -> CombinedAdversarialLoss | None:
        """The combined loss in force: the head's if it is one, else the strategy's, else None."""
        if isinstance(self.head.loss_module, CombinedAdversarialLoss):
            return self.head.loss_module
        return getattr(masking, "loss", None)

    def loss(self, inputs: Tensor, data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """The method's loss under the strategy's mask, with the adversarial terms.

        Besides ``loss`` the dict holds numbers for the log, without gradient: ``reconstruction``,
        ``adversarial``, the mask's statistics and the adversary's ``strength``.
        """
        if self.masking is None:
            return super().loss(inputs, data_samples, **kwargs)
        self.masking.set_progress(training_progress())
        patch_mask = self.masking(inputs)
        with (
            self.inject(patch_mask),
            seen_by_loss(self.head.loss_module, patch_mask) as seen,
        ):
            losses = super().loss(inputs, data_samples, **kwargs)
        losses.update(self.adversarial_terms(losses["loss"], patch_mask, *seen))
        losses.update(mask_statistics(patch_mask))
        if hasattr(self.masking, "strength"):
            losses["strength"] = inputs.new_full((), self.masking.strength)
        return losses

    def adversarial_terms(
        self, loss: Tensor, patch_mask: PatchMask, pred: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """``loss`` with the adversarial terms in it, and its parts for the log."""
        combined = self.adversarial_loss(self.masking)
        if combined is None:
            return {"reconstruction": loss.detach()}
        in_head = combined is self.head.loss_module
        with torch.set_grad_enabled(torch.is_grad_enabled() and not in_head):
            terms = combined.terms(pred, target, patch_mask)
        if in_head:
            return {
                "reconstruction": terms.reconstruction.detach(),
                "adversarial": terms.adversarial.detach(),
            }
        return {
            "loss": loss + combined.lambda_adv * (terms.adversarial + terms.objective),
            "reconstruction": loss.detach(),
            "adversarial": terms.adversarial.detach(),
        }

    def check_method(self) -> None:
        """Refuse a form of the method that cannot take a strategy.

        Raises:
            ValueError: with the reason.
        """
        raise NotImplementedError

    def takes_free_counts(self) -> bool:
        """Whether images of a batch may keep different numbers of patches."""
        return False

    def takes_gate(self) -> bool:
        """Whether the mask multiplies tokens, so that ``gate=True`` has an effect."""
        return False

    def masking_defaults(self) -> dict[str, Any]:
        """What the method itself says about patch size, mask ratio, channels and criterion."""
        raise NotImplementedError

    def inject(self, patch_mask: PatchMask) -> Any:
        """Context in which the method uses ``patch_mask`` in place of its own mask."""
        raise NotImplementedError


class MAE(MaskingMixin, selfsup.MAE):
    """mmpretrain's MAE, on a MAEViT or MAEHiViT backbone, with ``masking=``.

    With a MAEViT the images of a batch may keep different numbers of patches: the encoder runs on
    the longest row with the padding hidden from attention, and the decoder gets mask tokens in
    its place, so that each image comes out as it would alone.
    """

    def check_method(self) -> None:
        if not isinstance(self.backbone, (selfsup.MAEViT, selfsup.MAEHiViT)):
            raise ValueError(
                "masking= expected a MAEViT or MAEHiViT backbone, got "
                f"{type(self.backbone).__name__}; use backbone=dict(type='MAEViT', ...) or leave "
                "masking out"
            )

    def takes_free_counts(self) -> bool:
        return isinstance(self.backbone, selfsup.MAEViT)

    takes_gate = takes_free_counts

    def masking_defaults(self) -> dict[str, Any]:
        embed = self.backbone.patch_embed
        convolution = getattr(embed, "projection", None) or embed.proj
        penalty = getattr(self.head.loss_module, "penalty", None)
        return {
            "mask_ratio": self.backbone.mask_ratio,
            "patch_size": self.head.patch_size,
            "network": {"in_channels": convolution.in_channels},
            "loss": {"criterion": "L1" if isinstance(penalty, nn.L1Loss) else "L2"},
        }

    @contextmanager
    def inject(self, patch_mask: PatchMask) -> Iterator[None]:
        def random_masking(x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
            return patch_mask.gather_visible(x), patch_mask.mask, patch_mask.ids_restore

        def masking_id(batch_size: int, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
            if patch_mask.mask.shape != (batch_size, self.backbone.num_patches):
                raise ValueError(
                    f"expected a mask over {self.backbone.num_patches} patches, got a grid of "
                    f"{patch_mask.grid[0]} x {patch_mask.grid[1]}; set the strategy's patch_size "
                    "to the method's"
                )
            return patch_mask.ids_keep, patch_mask.ids_restore, patch_mask.mask

        with ExitStack() as stack:
            if isinstance(self.backbone, selfsup.MAEViT):
                stack.enter_context(overridden(self.backbone, "random_masking", random_masking))
            else:
                stack.enter_context(overridden(self.backbone, "masking_id", masking_id))
            if patch_mask.padding is not None:
                stack.enter_context(hidden_padding(self.backbone, self.neck, patch_mask.padding))
            yield

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor) -> tuple[PatchMask, Tensor]:
        """Masks and predicted images, for pictures.

        Args:
            inputs: ``(B, C, H, W)``, preprocessed.

        Returns:
            The mask, and ``(B, C, H, W)`` predictions on the scale of the inputs. With
            ``norm_pix`` each patch is given the mean and the deviation of the input's.

        Raises:
            ValueError: the model has no masking strategy.
        """
        if self.masking is None:
            raise ValueError("reconstruct expected a model with masking=dict(type=...), got None")
        patch_mask = self.masking(inputs)
        with self.inject(patch_mask):
            latent, _, ids_restore = self.backbone(inputs)
        pred = self.neck(latent, ids_restore)
        if self.head.norm_pix:
            patches = patchify(inputs, self.masking.patch_size)
            deviation = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
            pred = pred * deviation + patches.mean(-1, keepdim=True)
        return patch_mask, unpatchify(pred, self.masking.patch_size, patch_mask.grid)


FUNCTIONS.register_module(name="default_collate", module=default_collate_any_scope, force=True)
FUNCTIONS.register_module(name="pseudo_collate", module=pseudo_collate_any_scope, force=True)
MODELS.register_module(module=MAE)
for part in (AdversarialMasking, RandomMasking, CombinedAdversarialLoss):
    MODELS.register_module(module=part)
    MMPRETRAIN_MODELS.register_module(module=part)
HOOKS.register_module(module=MaskingPicturesHook)
MMPRETRAIN_HOOKS.register_module(module=MaskingPicturesHook)
