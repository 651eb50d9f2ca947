"""An oracle: the patches of the truly largest error."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from amn_masking.strategies.ranked import RankedMasking
from amn_masking.strategies.ratios import Ratio


class OracleMasking(RankedMasking):
    """A control: masks the patches that the autoencoder itself reconstructs worst.

    What a masking network without limits would learn to do patch by patch, at the price of the
    forward passes that ``error`` needs: with it the question whether *hard* masks help is apart
    from the question whether a network *finds* them.

    Args:
        mask_ratio, patch_size, prediction_ratio: as in
            :class:`~amn_masking.strategies.MaskingStrategy`.
        error: gives the ``(B, L)`` error of each patch of ``(B, C, H, W)`` images. In mmpretrain it
            is taken from the method: the mean over random masks of the error at the
            patches that they hide.
        draws: the least number of random masks that are tried, in rounds that hide every patch:
            at ratio 0.25 four masks a round, at 0.75 two.

    Raises:
        ValueError: a value out of range; in ``forward``, no ``error``, or of another shape, or not
            finite.
    """

    chooses_predicted = True

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        error: Callable[[Tensor], Tensor] | None = None,
        draws: int = 4,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__(mask_ratio, patch_size, prediction_ratio=prediction_ratio)
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        self.error = error
        self.draws = draws

    @torch.no_grad()
    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """The error."""
        return self.ask("error", images, "a method")
