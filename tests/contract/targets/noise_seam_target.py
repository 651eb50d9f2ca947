"""The noise seam: a model of the reference's interface that masks by code of its own."""

from __future__ import annotations

from torch import nn

from amn_masking.adapters.reference_mae import NoiseSeamMixin
from tests.contract.targets.reference_target import ReferenceMAE
from tests.helpers.reference_model import SmallMaskedAutoencoder


class SeamedAutoencoder(NoiseSeamMixin, SmallMaskedAutoencoder):
    """As a user writes it."""


class NoiseSeam(ReferenceMAE):
    """Its own ``random_masking`` runs, and sorts noise that is the strategy's."""

    free_counts = False
    leaves_out = False
    gate = False

    def build(self) -> nn.Module:
        return SeamedAutoencoder(norm_pix_loss=self.norm_pix_loss)


TARGETS = (NoiseSeam("noise seam", False),)
