"""Strategies that rank the patches and mask an exact number of them."""

from __future__ import annotations

import math

from torch import Generator, Tensor

from amn_masking.checks import check_finite
from amn_masking.counts import count_masked
from amn_masking.mask import PatchMask
from amn_masking.patches import fill_invalid, times
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.strategies.ratios import Ratio
from amn_masking.thresholds.base import Candidates


class RankedMasking(MaskingStrategy):
    """Masks the ``L - int(L * (1 - mask_ratio))`` patches of highest priority; ties at random.

    One's own is a subclass that says which patches come first::

        class BrightestFirst(RankedMasking):
            def priorities(self, images, num_masked, generator):
                return pool_to_patches(images, self.grid(images))

    Args:
        mask_ratio, patch_size, prediction_ratio: as in :class:`MaskingStrategy`.

    Attributes:
        chooses_predicted: whether the order is of what to predict, and what is left out is drawn
            from the others; else it is of what to mask, and a uniform part of that is predicted.

    Raises:
        ValueError: a value out of range; in ``forward``, priorities that are not finite.
    """

    takes_ratio = True
    chooses_predicted = False

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__(patch_size, mask_ratio, prediction_ratio=prediction_ratio)

    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """``(B, L)`` float32; larger is masked first.

        Args:
            images: ``(B, C, H, W)``.
            num_masked: how many patches of each image will be masked.
            generator: source of all randomness, on the images' device.
        """
        raise NotImplementedError

    def ask(self, name: str, images: Tensor, giver: str) -> Tensor:
        """``(B, L)`` float32 that the user's function, the attribute ``name``, gives of images.

        Args:
            name: of the attribute.
            images: ``(B, C, H, W)``.
            giver: what gives the function in mmpretrain, for the message.

        Raises:
            ValueError: there is no function, or it gives another shape.
        """
        function, grid = getattr(self, name), self.grid(images)
        if function is None:
            raise ValueError(
                f"{type(self).__name__} expected {name}=, a function from images to the (B, L) "
                f"{name} of the patches; in mmpretrain {giver} gives it by itself"
            )
        values = function(images).float()
        expected = (images.shape[0], math.prod(grid))
        if values.shape != expected:
            raise ValueError(
                f"{name}= expected to give {expected} for a {times(grid)} grid, "
                f"without prefix tokens, got {tuple(values.shape)}"
            )
        return values

    def check_priorities(self, priorities: Tensor) -> None:
        """Refuse NaN and infinity, as :func:`~amn_masking.checks.check_finite` does."""
        check_finite(
            priorities,
            f"{type(self).__name__:.60} expected finite priorities, got NaN or infinity; where "
            "NaN means no data: masking(images, valid=...), in mmpretrain the samples' 'valid'",
        )

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        grid = self.grid(images)
        self.mask_made()
        valid = self.valid_patches(valid, images)
        images = fill_invalid(images, valid, grid)
        ratio = self.chosen_ratio if self.chooses_predicted else self.mask_ratio
        num_masked = count_masked(math.prod(grid), ratio)
        priorities = self.priorities(images, num_masked, generator).float()
        self.check_priorities(priorities)
        candidates = Candidates(
            priorities, grid, valid=valid, deterministic=not self.training, generator=generator
        )
        chosen = candidates.select(num_masked).patch_mask
        return self.leave_out(chosen, generator) if self.chooses_predicted else chosen
