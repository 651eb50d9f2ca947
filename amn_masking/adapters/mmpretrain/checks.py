"""What a method must be, and a strategy must do, for the one to be masked with the other."""

from __future__ import annotations

from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from torch import nn

from amn_masking.adapters.mmpretrain.patch_error import KNOWN_LOSSES
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.strategies import MaskingStrategy


class MaskableMethod(BaseSelfSupervisor):
    """The part of :class:`MaskingMixin` that asks what the method is and refuses what cannot be.

    Attributes:
        backbones: the backbones that the method can be masked with.
    """

    backbones: tuple[type[nn.Module], ...] = (nn.Module,)

    def check_method(self) -> None:
        """Refuse a form of the method that cannot take a strategy.

        Raises:
            ValueError: with the reason.
        """
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
        if isinstance(loss, CombinedAdversarialLoss) and not self.predicts_pixels():
            raise ValueError(
                f"{name} does not predict pixels, so its head's loss cannot be a "
                "CombinedAdversarialLoss; leave the head as it is and put it into the strategy: "
                "masking=dict(loss=dict(lambda_adv=...))"
            )

    def check_strategy(self, masking: MaskingStrategy) -> None:
        """Refuse a strategy that this method cannot follow.

        Raises:
            ValueError: with the reason and the way out.
        """
        name = f"{type(self).__name__} with {type(self.backbone).__name__}"
        self.check_patch_size(masking.patch_size)
        if masking.free_counts and not self.takes_free_counts():
            raise ValueError(
                f"{name} needs the same number of visible patches in every image, but "
                f"{type(masking).__name__} leaves the count free; use "
                "threshold=dict(type='quantile')"
            )
        if getattr(masking, "gate", False) and not self.takes_gate():
            raise ValueError(
                f"{name} takes its mask as ids or as a plain tensor, through which no gradient "
                "flows; leave out gate=True"
            )
        loss = self.adversarial_loss(masking)
        if loss is not None and loss is not self.loss_module and loss.reconstruct != "masked":
            raise ValueError(
                f"masking.loss says reconstruct={loss.reconstruct!r}, but the reconstruction term "
                f"is the head's {type(self.loss_module).__name__}; put it there: head=dict("
                "loss=dict(type='CombinedAdversarialLoss', reconstruct=...))"
            )

    def check_patch_size(self, patch_size: tuple[int, int]) -> None:
        """Refuse patches that are not the method's.

        Raises:
            ValueError: with the right size.
        """
        if patch_size != self.patch_size:
            raise ValueError(
                f"masking has patch_size={patch_size}, but {type(self).__name__} works on patches "
                f"of {self.patch_size} pixels; leave patch_size out to take the method's own"
            )

    def takes_free_counts(self) -> bool:
        """Whether images of a batch may mask different numbers of patches."""
        return False

    def takes_gate(self) -> bool:
        """Whether the mask multiplies tokens, so that ``gate=True`` has an effect."""
        return False

    def predicts_pixels(self) -> bool:
        """Whether pictures can show the prediction, and the head's loss may be a combined one."""
        return False

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the patches that the method masks: the backbone's."""
        embed = self.backbone.patch_embed
        # HiViT embeds parts of a patch and says how large the whole is.
        return embed.patch_size if hasattr(embed, "patch_size") else embed.projection.stride

    @property
    def loss_module(self) -> nn.Module:
        """The head's loss."""
        return self.head.loss_module

    def adversarial_loss(self, masking: MaskingStrategy) -> CombinedAdversarialLoss | None:
        """The combined loss in force: the head's if it is one, else the strategy's, else None."""
        if isinstance(self.loss_module, CombinedAdversarialLoss):
            return self.loss_module
        return masking.loss
