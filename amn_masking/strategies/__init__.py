"""Masking strategies: images in, :class:`~amn_masking.mask.PatchMask` out."""

from amn_masking.strategies.adversarial import AdversarialMasking
from amn_masking.strategies.attention import AttentionMasking
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.strategies.block import BlockMasking
from amn_masking.strategies.color_noise import ColorNoiseMasking
from amn_masking.strategies.hard_patches import HardPatchMasking
from amn_masking.strategies.oracle import OracleMasking
from amn_masking.strategies.random import RandomMasking
from amn_masking.strategies.tubes import TubeMasking
from amn_masking.strategies.wrapped import RandomRatioMasking, ShuffledMasking

__all__ = [
    "AdversarialMasking",
    "AttentionMasking",
    "BlockMasking",
    "ColorNoiseMasking",
    "HardPatchMasking",
    "MaskingStrategy",
    "OracleMasking",
    "RandomMasking",
    "RandomRatioMasking",
    "ShuffledMasking",
    "TubeMasking",
]
