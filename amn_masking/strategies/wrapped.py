"""Strategies around another strategy."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from amn_masking.mask import PatchMask
from amn_masking.strategies.adversarial import AdversarialMasking
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.strategies.random import RandomMasking
from amn_masking.strategies.ranked import RankedMasking
from amn_masking.thresholds.selection import check_mask_ratio, count_visible


class WrappedMasking(MaskingStrategy):
    """A strategy that changes what another one does.

    Args:
        masking: the other one.

    Raises:
        TypeError: it is no strategy.
    """

    def __init__(self, masking: MaskingStrategy) -> None:
        if not isinstance(masking, MaskingStrategy):
            raise TypeError(
                f"{type(self).__name__} expected masking= a MaskingStrategy, or in mmpretrain its "
                f"config dict(type=...), got {type(masking).__name__}"
            )
        super().__init__(masking.patch_size)
        self.masking = masking
        self.loss = masking.loss
        self.free_counts = masking.free_counts
        self.gate = getattr(masking, "gate", False)

    def set_progress(
        self, progress: float, iteration: float | None = None, epoch: float | None = None
    ) -> None:
        self.masking.set_progress(progress, iteration, epoch)


class RandomRatioMasking(WrappedMasking):
    """Another strategy, with a mask ratio drawn anew for each batch.

    The range of ratios stands for a range of difficulties, as in Li et al., "MAGE"
    (arXiv:2211.09117), which draws it from a truncated normal distribution for each image; here it
    is uniform, and one for all images of a batch, so that encoders that drop tokens stay without
    padding. Each rank draws its own.

    Args:
        masking: the strategy, with an exact count.
        ratio_range: least and largest mask ratio, both in (0, 1).

    Raises:
        ValueError: no such range, or a strategy that chooses its own counts; in ``forward``, images
            of which an end of the range leaves no patch visible or none masked.
        TypeError: ``masking`` is no strategy with a mask ratio.
    """

    def __init__(
        self, masking: MaskingStrategy, ratio_range: tuple[float, float] = (0.5, 0.9)
    ) -> None:
        super().__init__(masking)
        if not isinstance(masking, (RandomMasking, RankedMasking, AdversarialMasking)):
            raise TypeError(
                "RandomRatioMasking expected a strategy with a mask_ratio, got "
                f"{type(masking).__name__}"
            )
        if masking.free_counts:
            raise ValueError(
                "RandomRatioMasking expected a strategy with an exact count, but the threshold of "
                "this one chooses its own; use threshold=dict(type='quantile')"
            )
        low, high = (check_mask_ratio(ratio) for ratio in ratio_range)
        if low > high:
            raise ValueError(f"ratio_range expected (least, largest), got {ratio_range}")
        self.ratio_range = (low, high)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        low, high = self.ratio_range
        h, w = self.grid(images)
        for end in self.ratio_range:  # at once, and not when it happens to be drawn
            count_visible(h * w, end)
        device = "cpu" if generator is None else generator.device
        # The host has to know how many patches are left, so it draws from its own generator.
        ratio = low + (high - low) * float(torch.rand((), device=device, generator=generator))
        owner: Any = getattr(self.masking, "threshold", self.masking)
        before = owner.mask_ratio
        owner.mask_ratio = ratio
        try:
            return self.masking(images, generator)
        finally:
            owner.mask_ratio = before

    def extra_repr(self) -> str:
        return f"ratio_range={self.ratio_range}, {super().extra_repr()}"


class ShuffledMasking(WrappedMasking):
    """A control: every image gets the mask that was made for another image of the batch.

    The masks keep their counts, their shapes and their places; what they lose is the tie to the
    image's content. If they train as well as unshuffled ones, that tie is not what helps. A learned
    mask goes with its gradient, so its network learns where masks are hard on images that it did
    not see: it can only learn positions.

    Args:
        masking: the strategy.

    Raises:
        TypeError: ``masking`` is no strategy.
        ValueError: in ``forward``, a batch of one image.
    """

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        batch = images.shape[0]
        if batch < 2:
            raise ValueError(f"ShuffledMasking expected at least two images, got {batch}")
        patch_mask = self.masking(images, generator)
        # A cycle through all images in random order: no image keeps its own mask.
        noise = torch.rand(batch, device=images.device, generator=generator)
        order = noise.argsort()
        source = torch.empty_like(order).scatter_(0, order, order.roll(1))
        rows = {
            field.name: value[source]
            for field in fields(patch_mask)
            if isinstance(value := getattr(patch_mask, field.name), Tensor)
            and field.name != "reward_scale"  # the error that it scales is of the image itself
        }
        return replace(patch_mask, **rows)
