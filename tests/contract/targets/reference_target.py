"""The interface of the reference MAE, by amn_masking.adapters.reference_mae."""

from __future__ import annotations

from unittest.mock import patch

from torch import Tensor, nn

from amn_masking.adapters.reference_mae import MaskedAutoencoderMixin
from amn_masking.strategies import MaskingStrategy
from tests.contract.targets.target import Step, Target, seen_by
from tests.helpers.reference_model import SmallMaskedAutoencoder


class LearnedAutoencoder(MaskedAutoencoderMixin, SmallMaskedAutoencoder):
    """As a user writes it."""


class ReferenceMAE(Target):
    """A model of our own with the reference's interface."""

    package = "timm"
    free_counts = True
    gate = True
    keeps = ("mask_checked", "error_checked")

    def __init__(self, name: str, norm_pix_loss: bool) -> None:
        self.name = name
        self.norm_pix_loss = norm_pix_loss

    def build(self) -> nn.Module:
        return LearnedAutoencoder(norm_pix_loss=self.norm_pix_loss)

    def stock(self, model: nn.Module) -> SmallMaskedAutoencoder:
        """The class without the mixin, with the same weights."""
        stock = SmallMaskedAutoencoder(norm_pix_loss=self.norm_pix_loss)
        stock.load_state_dict(model.state_dict())
        return stock.to(next(model.parameters()).dtype)

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        stock = self.stock(model)
        return stock.with_class_token(stock.embed(images))

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        model.masking = masking
        try:
            with (
                seen_by(model.blocks[0]) as tokens,
                seen_by(model.decoder_blocks[0].norm1) as decoded,
                seen_by(masking, output=True) as masks,
            ):
                loss, pred, mask = model(images)
        finally:
            model.masking = None
        error = model.patch_error(images, pred)
        own = model.forward_loss(images, pred, mask)
        return Step(own, error, tokens[0], decoded[0], loss, masks[0])

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        stock = self.stock(model)
        with patch("torch.rand", return_value=noise), seen_by(stock.blocks[0]) as tokens:
            loss, _, _ = stock(images)
        return tokens[0], loss


TARGETS = (ReferenceMAE("reference MAE", False), ReferenceMAE("reference MAE, norm_pix_loss", True))
