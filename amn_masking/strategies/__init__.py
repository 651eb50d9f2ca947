"""Masking strategies: images in, :class:`~amn_masking.mask.PatchMask` out."""

from amn_masking.strategies.adversarial import AdversarialMasking
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.strategies.random import RandomMasking

__all__ = ["AdversarialMasking", "MaskingStrategy", "RandomMasking"]
