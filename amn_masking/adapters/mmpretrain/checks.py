"""What a method must be, and a strategy must do, for the one to be masked with the other."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from torch import Tensor, nn

from amn_masking.adapters.mmpretrain.patch_error import KNOWN_LOSSES, PIXEL_LOSSES
from amn_masking.adapters.own_loss import check_followed
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.strategies import MaskingStrategy

EQUAL_COUNTS = "needs the same number of visible patches in every image"
NO_GATE = "takes its mask as ids or as a plain tensor, through which no gradient flows"


class MaskableMethod(BaseSelfSupervisor):
    """The part of :class:`MaskedMethod` that asks what the method is and refuses what cannot be.

    Each ``check_`` raises a ValueError with the reason and the way out.

    Attributes:
        backbones: the backbones that the method can be masked with.
        mask_ratio: share of masked patches where neither the strategy nor the backbone says.
        takes_valid: whether patches may be left out as not valid: its loss is over masked ones.
    """

    masking: Any
    mask_ratio: float = 0.75
    backbones: tuple[type[nn.Module], ...] = (nn.Module,)
    takes_valid: bool = True

    def check_method(self) -> None:
        """Refuse a form of the method that cannot take a strategy."""
        name = type(self).__name__
        if not isinstance(self.backbone, self.backbones):
            known = " or ".join(backbone.__name__ for backbone in self.backbones)
            raise ValueError(
                f"masking= on {name} expected a {known} backbone, got "
                f"{type(self.backbone).__name__}; use backbone=dict(type={known.split()[0]!r}, "
                "...) or leave masking out"
            )
        loss = self.loss_module
        if not isinstance(loss, KNOWN_LOSSES):
            known = ", ".join(cls.__name__ for cls in KNOWN_LOSSES)
            raise ValueError(
                f"masking= needs the error of each patch and knows how to get it from {known}; the "
                f"head of {name} has {type(loss).__name__}. Subclass one of those, or override "
                "patch_error"
            )
        if isinstance(loss, CombinedAdversarialLoss) and not self.predicts_pixels:
            raise ValueError(
                f"{name} does not predict pixels, so its head's loss cannot be a "
                "CombinedAdversarialLoss; leave the head as it is and put it into the strategy: "
                "masking=dict(loss=dict(lambda_adv=...))"
            )

    def check_strategy(self, masking: MaskingStrategy) -> None:
        """Refuse a strategy that this method cannot follow."""
        name = f"{type(self).__name__} with {type(self.backbone).__name__}"
        self.check_patch_size(masking.patch_size)
        self.check_left_out(masking.prediction_ratio is not None)
        masking.require(
            name,
            equal_counts="" if self.takes_free_counts else EQUAL_COUNTS,
            no_gate="" if self.takes_gate else NO_GATE,
            normalised_targets=bool(getattr(self.head, "norm_pix", False)),
        )
        if masking.own_loss and isinstance(self.loss_module, CombinedAdversarialLoss):
            raise ValueError(
                "masking.loss and the head's CombinedAdversarialLoss both have a lambda_adv, of "
                "which the head's would count; leave loss out of masking, or give the head the "
                "method's own loss"
            )
        if masking.reward == "variance_normalised" and not self.predicts_pixels:
            raise ValueError(
                f"{name} does not predict pixels, so the variance of a patch's pixels, by which "
                "reward='variance_normalised' divides, says nothing about its errors; use "
                "reward='error'"
            )
        loss = self.adversarial_loss(masking)
        if loss is not self.loss_module:
            check_followed(
                loss,
                f"the head's {type(self.loss_module).__name__}",
                criterion=None if isinstance(self.loss_module, PIXEL_LOSSES) else "L2",
                instead="leave it out, or, where the method takes one, put it there: head=dict("
                "loss=dict(type='CombinedAdversarialLoss', ...))",
            )

    def check_patch_size(self, patch_size: tuple[int, ...]) -> None:
        """Refuse patches that are not the method's."""
        if patch_size != self.patch_size:
            raise ValueError(
                f"masking has patch_size={patch_size}, but {type(self).__name__} works on patches "
                f"of {self.patch_size} pixels; leave patch_size out to take the method's own"
            )

    def check_left_out(self, asked: bool) -> None:
        """Refuse to leave patches out where the method cannot."""
        if asked and self.no_left_out:
            raise ValueError(
                f"prediction_ratio leaves patches out of the prediction, but {type(self).__name__} "
                f"{self.no_left_out}; leave prediction_ratio out, or use a method such as MAE"
            )

    def check_mask(self, patch_mask: PatchMask, images: Tensor) -> None:
        """Refuse a mask that this method cannot follow, before the forward pass."""
        name = type(self).__name__
        if patch_mask.masks_nothing:
            raise ValueError(
                f"{name} expected masked patches, of which its loss is a mean, but no image of "
                "this batch has one; let the strategy mask one at least"
            )
        host = f"{name}'s {type(self.backbone).__name__}"
        patch_mask.check_grid(images, self.masking.patch_size, host, self.own_grid)
        neck: Any = getattr(self, "neck", None)
        positions = getattr(neck, "decoder_pos_embed", None)
        if isinstance(positions, Tensor) and neck.num_patches != patch_mask.num_patches:
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels have "
                f"{patch_mask.grid[0]} x {patch_mask.grid[1]} = {patch_mask.num_patches} patches, "
                f"but neck.num_patches of {name} is for {neck.num_patches}; set neck.num_patches "
                "to the size of the images, or resize them"
            )
        self.check_left_out(patch_mask.num_left_out > 0)
        if patch_mask.valid is not None and not self.takes_valid:
            raise ValueError(
                f"{name} cannot leave patches without data out of its loss, which is over all "
                "patches or has one mask for all images, but got a mask with valid; leave valid "
                "out and fill the images, or use a method such as MAE"
            )

    def masking_defaults(self) -> dict[str, Any]:
        """What the method itself says about patch size, channels and criterion."""
        convolution = next(m for m in self.backbone.modules() if isinstance(m, nn.Conv2d))
        defaults: dict[str, Any] = {
            "patch_size": self.patch_size,
            "network": {"in_channels": convolution.in_channels},
        }
        # A combined loss in the head has the weights; two of them would be one too many.
        if not isinstance(self.loss_module, CombinedAdversarialLoss):
            penalty = getattr(self.loss_module, "penalty", None)
            criterion = "L1" if isinstance(penalty, nn.L1Loss) else "L2"
            defaults["loss"] = {"criterion": criterion}
        return defaults

    @property
    def takes_free_counts(self) -> bool:
        """Whether images of a batch may mask different numbers of patches."""
        return False

    @property
    def takes_gate(self) -> bool:
        """Whether the mask multiplies tokens, so that ``gate=True`` has an effect."""
        return False

    @property
    def no_left_out(self) -> str:
        """Why no masked patch can be left out of the prediction; empty if one can."""
        return ""

    @property
    def predicts_pixels(self) -> bool:
        """Whether pictures can show the prediction, and the head's loss may be a combined one."""
        return False

    def own_mask_ratio(self) -> float:
        """Share of masked patches where the strategy does not say."""
        return getattr(self.backbone, "mask_ratio", self.mask_ratio)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the patches that the method masks: the backbone's."""
        embed = self.backbone.patch_embed
        # HiViT embeds parts of a patch and says how large the whole is.
        return embed.patch_size if hasattr(embed, "patch_size") else embed.projection.stride

    @property
    def own_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of masked patches that the backbone is built for; None if any."""
        embed = self.backbone.patch_embed
        if hasattr(embed, "patches_resolution"):  # HiViT's
            return tuple(embed.patches_resolution)
        height, width = (
            tokens * stride // side
            for tokens, stride, side in zip(
                embed.init_out_size, embed.projection.stride, self.masking.patch_size, strict=True
            )
        )
        return height, width

    @property
    def loss_module(self) -> nn.Module:
        """The head's loss."""
        return self.head.loss_module

    def adversarial_loss(self, masking: MaskingStrategy) -> CombinedAdversarialLoss | None:
        """The combined loss in force: the head's if it is one, else the strategy's, else None."""
        if isinstance(self.loss_module, CombinedAdversarialLoss):
            return self.loss_module
        return masking.loss
