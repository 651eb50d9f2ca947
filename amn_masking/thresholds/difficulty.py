"""``difficulty``: free counts whose mean is moved until the masks are as hard as wanted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributed

from amn_masking.mask import PatchMask
from amn_masking.thresholds.tracking import Tracking

# The ratio integrates the missed log-gain at this share of the rate of the running errors: no
# overshoot where the log-gain changes by up to 1.7 per unit of ratio, a well-damped one beyond.
RATIO_RATE = 0.15


class Difficulty(Tracking):
    """As ``tracking``, but what is held is the adversarial gain, and the ratio is what moves.

    The gain is measured in the training itself, without a forward pass of its own: in every step
    the errors of the patches that were masked by their score, over those of the patches of the same
    masks that were drawn at random (``random_share`` of them). Both are running means, g their
    ratio. The fewer patches are masked by score, the more they are the extreme ones: so with a
    target above 1 the ratio grows while g is above the target, and shrinks while it is below::

        ratio <- ratio + 0.15 * gain * sign(log target) * (log g - log target)

    within ``ratio_range``. A network that has no opinion yet has g = 1, and the ratio shrinks until
    it has one or the range ends; for the same reason a target that the network cannot reach ends
    there. The errors of randomly drawn patches are under the strategy's masks, which are harder to
    fill in than random ones: the gain of the meters, which compares with random masks, is another
    number.

    Beside tracking's buffers the running errors and the ratio are kept in checkpoints, and under
    ``torch.distributed`` all are equal on all ranks.

    Args:
        mask_ratio: the ratio to begin with, in (0, 1).
        target_gain: > 0 and not 1; above 1 for an adversary (``strength`` > 0), below for a
            cooperative mask.
        ratio_range: least and largest share in any one image, and of the mean.
        gain: rate of the running means, in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    errors: Tensor
    ratio: Tensor

    def __init__(
        self,
        mask_ratio: float,
        target_gain: float = 1.2,
        ratio_range: tuple[float, float] = (0.05, 0.95),
        gain: float = 0.1,
    ) -> None:
        super().__init__(mask_ratio, ratio_range, gain)
        if not target_gain > 0 or target_gain == 1 or math.isinf(target_gain):
            raise ValueError(
                "target_gain is the error of masked patches over that of random ones, above 0 and "
                f"not 1 (random masks have 1 at any ratio), got {target_gain}"
            )
        self.target_gain = target_gain
        # Running sums of error and count: by score, at random. 0 until the first step.
        self.register_buffer("errors", torch.zeros(2, 2))
        self.register_buffer("ratio", torch.tensor(float(mask_ratio)))

    @property
    def target(self) -> Tensor:
        return self.ratio

    @property
    def running_gain(self) -> Tensor:
        """g, a scalar: error of patches masked by score over error of those drawn at random.

        Not a number before the first step.
        """
        chosen, random = self.errors[:, 0] / self.errors[:, 1]
        return chosen / random

    @torch.no_grad()
    def observe(self, error: Tensor, patch_mask: PatchMask) -> None:
        """Take the errors of a step's masks, and move the ratio.

        Args:
            error: ``(B, L)`` per-patch error.
            patch_mask: the mask that the error was made under, with ``random``.

        Raises:
            ValueError: no patch was drawn at random.
        """
        if patch_mask.random is None:
            raise ValueError(
                "threshold 'difficulty' measures the masks beside patches drawn at random and "
                "expected random_share > 0, such as 0.25"
            )
        random = patch_mask.random & patch_mask.mask.bool()
        chosen = patch_mask.mask.bool() & ~random
        error = error.detach().to(self.errors.dtype)
        sums = [(part * weight).sum() for part in (chosen, random) for weight in (error, 1.0)]
        found = torch.stack(sums).reshape(2, 2)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(found)
        found = found / found[:, 1].sum()
        started = self.errors.sum() > 0
        self.errors.copy_(torch.where(started, self.errors.lerp(found, self.gain), found))
        missed = self.running_gain.log() - math.log(self.target_gain)
        # Errors of 0, or a batch without a chosen or a random patch, say nothing.
        missed = torch.where(missed.isfinite(), missed.clamp(-1, 1), 0.0)
        step = math.copysign(RATIO_RATE * self.gain, math.log(self.target_gain)) * missed
        low, high = self.ratio_range
        ratio = (self.ratio + step).clamp(low, high)
        # What tracking would have to find out otherwise.
        self.level.copy_((self.level + ratio - self.ratio).clamp(1e-6, 1.0))
        self.ratio.copy_(ratio)

    def extra_repr(self) -> str:
        return f"target_gain={self.target_gain}, {super().extra_repr()}"
