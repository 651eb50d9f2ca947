"""Masking strategies for masked autoencoders, learned adversarially or free."""

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.network import MaskingNetwork
from amn_masking.strategies import AdversarialMasking, MaskingStrategy, RandomMasking

__version__ = "0.1.0"

__all__ = [
    "AdversarialMasking",
    "CombinedAdversarialLoss",
    "MaskingNetwork",
    "MaskingStrategy",
    "PatchMask",
    "RandomMasking",
]
