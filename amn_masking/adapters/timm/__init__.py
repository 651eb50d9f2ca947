"""Masks for timm's vision transformers: a masked encoder, and a masked autoencoder around one."""

from amn_masking.adapters.timm.autoencoder import MaskedAutoencoder, Output
from amn_masking.adapters.timm.encoders import masked, patch_size

__all__ = ["MaskedAutoencoder", "Output", "masked", "patch_size"]
