"""Strategies around another strategy."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Generator, Tensor, nn

from amn_masking.checks import check_honoured
from amn_masking.counts import check_ratio_range
from amn_masking.mask import PatchMask
from amn_masking.noise import uniform
from amn_masking.strategies.base import MaskingStrategy


class Forwarded:
    """A setting of the wrapped strategy, read and set there.

    Raises:
        AttributeError: on setting, the strategy has no such setting.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        return self if wrapper is None else getattr(wrapper.masking, self.name)

    def __set__(self, wrapper: Any, value: Any) -> None:
        if self.name == "mask_ratio":
            wrapper.check_takes_ratio()
        if not hasattr(wrapper.masking, self.name):
            raise AttributeError(f"{type(wrapper.masking).__name__} has no {self.name} to set")
        setattr(wrapper.masking, self.name, value)


class WrappedMasking(MaskingStrategy):
    """A strategy that changes what another one does.

    What it does not change is the other one's: ratio, schedules, log, gate, counts and loss. It has
    nothing of its own that could say otherwise.

    Args:
        masking: the other one.

    Raises:
        TypeError: it is no strategy.
    """

    takes_ratio = Forwarded()
    mask_ratio = Forwarded()
    prediction_ratio = Forwarded()
    own_ratio = Forwarded()
    default_ratio = Forwarded()
    drawn_from = Forwarded()
    strength = Forwarded()
    random_share = Forwarded()
    temperature = Forwarded()
    free_counts = Forwarded()
    gate = Forwarded()
    own_loss = Forwarded()
    reward = Forwarded()
    standardise = Forwarded()
    entropy_weight = Forwarded()
    loss = Forwarded()
    patch_size = Forwarded()
    schedules = Forwarded()
    progress = Forwarded()

    def __init__(self, masking: MaskingStrategy | None = None) -> None:
        nn.Module.__init__(self)
        if not isinstance(masking, MaskingStrategy):
            raise TypeError(
                f"{type(self).__name__} expected masking= a MaskingStrategy, or in mmpretrain its "
                f"config dict(type=...), got {type(masking).__name__}"
            )
        self.masking = masking

    def __setattr__(self, name: str, value: Any) -> None:
        # torch would keep a module, such as a loss, beside what is forwarded.
        if isinstance(forwarded := getattr(type(self), name, None), Forwarded):
            forwarded.__set__(self, value)
        else:
            super().__setattr__(name, value)

    def other_mask(
        self, images: Tensor, generator: Generator | None, valid: Tensor | None
    ) -> PatchMask:
        """The other strategy's mask; one that does not know ``valid`` is not given it in vain."""
        if valid is None:
            return self.masking(images, generator)
        patch_mask = self.masking(images, generator, valid)
        check_honoured(valid, patch_mask.valid, type(self.masking).__name__)
        return patch_mask

    def set_progress(
        self, progress: float, iteration: float | None = None, epoch: float | None = None
    ) -> None:
        self.masking.set_progress(progress, iteration, epoch)

    def log_values(self) -> dict[str, float | Tensor]:
        return self.masking.log_values()

    def total_loss(self, reconstruction: Tensor, error: Tensor, patch_mask: PatchMask) -> Tensor:
        return self.masking.total_loss(reconstruction, error, patch_mask)

    def check_takes_ratio(self) -> None:
        self.masking.check_takes_ratio()

    def check_takes_prediction(self) -> None:
        self.masking.check_takes_prediction()

    def check_counts(self, num_patches: int, *ratios: float) -> None:
        self.masking.check_counts(num_patches, *ratios)

    def require(self, host: str, *args: Any, **options: Any) -> None:
        self.masking.require(host, *args, **options)


class RandomRatioMasking(WrappedMasking):
    """Another strategy, with a mask ratio drawn anew for each batch.

    The range of ratios stands for a range of difficulties, as in Li et al., "MAGE"
    (arXiv:2211.09117), which draws it from a truncated normal distribution for each image; here it
    is uniform, and one for all images of a batch, so that encoders that drop tokens stay without
    padding. Each rank draws its own. In ``eval()`` the ratio is the middle of the range.

    Args:
        masking: the strategy, one's own too, with an exact count and without a ratio of its own,
            which would not count.
        ratio_range: least and largest mask ratio, both in (0, 1).

    Raises:
        ValueError: no such range, or a strategy that chooses its own counts, takes no ratio or was
            given one; in ``forward``, images of which an end of the range leaves no patch visible
            or none masked; on setting ``mask_ratio``.

    Example:
        >>> import torch
        >>> from amn_masking import RandomMasking
        >>> masking = RandomRatioMasking(RandomMasking(patch_size=16), ratio_range=(0.5, 0.9))
        >>> 8 <= masking(torch.rand(2, 3, 64, 64)).mask[0].sum() <= 15
        tensor(True)
    """

    def __init__(
        self,
        masking: MaskingStrategy | None = None,
        ratio_range: tuple[float, float] = (0.5, 0.9),
    ) -> None:
        super().__init__(masking)
        if self.free_counts:
            raise ValueError(
                "RandomRatioMasking expected a strategy with an exact count, but the threshold of "
                "this one chooses its own; use threshold=dict(type='quantile')"
            )
        self.masking.check_takes_ratio()
        self.ratio_range = check_ratio_range(ratio_range)
        if self.ratio_range[0] == 0 or self.ratio_range[1] == 1:
            raise ValueError(f"ratio_range expected two numbers in (0, 1), got {ratio_range}")
        self.check()
        self.drawn_from, self.default_ratio = self.ratio_range, self.ratio_range[0]

    def check(self) -> None:
        """Raise ValueError where the other strategy has a ratio, which would not count."""
        if self.own_ratio:
            raise ValueError(
                "RandomRatioMasking draws the ratio, but its strategy was given "
                f"mask_ratio={self.mask_ratio}; leave that out"
            )

    def check_takes_ratio(self) -> None:
        raise ValueError(
            "RandomRatioMasking draws the ratio and takes no mask_ratio; set its ratio_range"
        )

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        low, high = self.drawn_from = self.ratio_range  # which may have been set since
        length = math.prod(self.grid(images))
        self.check()
        # At once, and not when it happens to be drawn.
        for ratio in self.ratio_range:
            self.masking.check_counts(length, ratio, ratio)
        share = 0.5
        if self.training:
            # The host has to know how many patches are left, so it draws from its own generator.
            device = getattr(generator, "device", torch.device("cpu"))
            share = float(uniform((), device, generator))
        self.default_ratio = low + (high - low) * share
        return self.other_mask(images, generator, valid)


class ShuffledMasking(WrappedMasking):
    """A control: every image gets the mask that was made for another image of the batch.

    The masks keep their counts, their shapes and their places; what they lose is the tie to the
    image's content. If they train as well as unshuffled ones, that tie is not what helps. A learned
    mask goes with its gradient, so its network learns where masks are hard on images that it did
    not see: it can only learn positions.

    A batch of one image keeps its mask, with one warning.

    Args:
        masking: the strategy, one's own too.

    Raises:
        ValueError: in ``forward``, patches that are valid in one image and not in another.

    Example:
        >>> import torch
        >>> from amn_masking import AdversarialMasking
        >>> masking = ShuffledMasking(AdversarialMasking(mask_ratio=0.25, patch_size=16))
        >>> masking(torch.rand(2, 3, 64, 64)).mask.sum(1)
        tensor([4., 4.])
    """

    warned = False

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        valid = self.valid_patches(valid, images)
        if valid is not None and bool((valid != valid[:1]).any()):
            raise ValueError(
                "ShuffledMasking gives an image the mask of another, and expected the same valid "
                "patches in all images of the batch; leave valid out, or the shuffle"
            )
        patch_mask = self.other_mask(images, generator, valid)
        batch = images.shape[0]
        if batch < 2:
            if not self.warned:
                self.warned = True
                warnings.warn(
                    "ShuffledMasking got a batch of one image, which keeps its own mask; to leave "
                    "such a batch out set drop_last=True in the dataloader",
                    stacklevel=2,
                )
            return patch_mask
        # A cycle through all images in random order: no image keeps its own mask.
        order = torch.arange(batch, device=images.device)
        if self.training:
            order = uniform((batch,), images.device, generator).argsort()
        source = torch.empty_like(order).scatter_(0, order, order.roll(1))
        return patch_mask.take(source)
