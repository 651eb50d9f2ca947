"""Attention masking: the patches that the encoder itself looks at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from amn_masking.noise import tie_breaks
from amn_masking.strategies.ranked import RankedMasking
from amn_masking.strategies.ratios import Ratio
from amn_masking.thresholds.base import Candidates, first_of


class AttentionMasking(RankedMasking):
    """Masks the patches that the class token attends to most in the encoder's last layer.

    Kakogeorgiou et al., "What to Hide from Your Students: Attention-Guided Masked Image Modeling"
    (AttMask, arXiv:2203.12719), its variants *high* and, with ``hint_share`` > 0, *hint*: of the
    most attended patches that share, drawn at random, stays visible. There a teacher with averaged
    weights gives the attention, and hints lower the ratio. Here the encoder being trained gives it,
    and each hint is refilled with another patch, so that the count is exact.

    It costs a forward pass of the whole image through the encoder, without a gradient.

    Args:
        mask_ratio, patch_size, prediction_ratio: as in
            :class:`~amn_masking.strategies.MaskingStrategy`.
        hint_share: share in [0, 1) of the most attended patches that are shown all the same.
        attention: gives ``(B, L)`` attention of ``(B, C, H, W)`` images. In mmpretrain it is taken
            from the method's own MAEViT; elsewhere give a function.

    Raises:
        ValueError: a value out of range; in ``forward``, no ``attention``, or of another shape, or
            not finite.

    Example:
        >>> import torch
        >>> def attention(images):  # of the class token, (B, L); here: bright patches
        ...     return torch.nn.functional.avg_pool2d(images.mean(1), 16).flatten(1)
        >>> masking = AttentionMasking(attention=attention, mask_ratio=0.5, patch_size=16)
        >>> masking(torch.rand(2, 3, 64, 64)).mask.sum(1)
        tensor([8., 8.])
    """

    chooses_predicted = True

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        hint_share: float = 0.0,
        attention: Callable[[Tensor], Tensor] | None = None,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__(mask_ratio, patch_size, prediction_ratio=prediction_ratio)
        if not 0 <= hint_share < 1:
            raise ValueError(f"hint_share must lie in [0, 1), got {hint_share}")
        self.hint_share = hint_share
        self.attention = attention

    @torch.no_grad()
    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """The attention; of hints, less than any other, so that they come last."""
        grid = self.grid(images)
        attention = self.ask("attention", images, "a method with a MAEViT backbone")
        # No more hints than there are other patches to mask in their place.
        hints = min(round(self.hint_share * num_masked), attention.shape[1] - num_masked)
        if hints == 0:
            return attention
        self.check_priorities(attention)  # a hint would hide what is no number
        # In eval() the hints are the same in every call; equal attention is ordered at random.
        chosen = Candidates(
            attention, grid, deterministic=not self.training, generator=generator
        ).select(num_masked)
        noise = tie_breaks(attention, None if self.training else grid, generator)
        noise = noise.masked_fill(chosen.patch_mask.mask == 0, 2.0)
        drawn = first_of(noise.argsort(1), hints)
        return attention.masked_fill(drawn, torch.finfo(attention.dtype).min)
