"""``difficulty``: free counts whose mean is moved until the masks are as hard as wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from amn_masking.mask import PatchMask
from amn_masking.schedules import Schedule
from amn_masking.thresholds.base import Candidates
from amn_masking.thresholds.tracking import Tracking, mean_over_ranks

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

        ratio <- ratio + 0.15 * rate * sign(log target) * (log g - log target)

    within ``ratio_range``. A network that has no opinion yet has g = 1, and the ratio shrinks until
    it has one or the range ends; for the same reason a target that the network cannot reach ends
    there. The errors of randomly drawn patches are under the strategy's masks, which are harder to
    fill in than random ones: the gain of the meters, which compares with random masks, is another
    number.

    Beside tracking's buffers the running errors and the ratio are kept in checkpoints, and under
    ``torch.distributed`` all are equal on all ranks.

    Args:
        target_gain: > 0 and not 1; above 1 for an adversary (``strength`` > 0), below for a
            cooperative mask.
        ratio_range: least and largest share in any one image, and of the mean. The strategy's
            ``mask_ratio`` is where the ratio begins.
        rate: of the running means, in (0, 1].

    Raises:
        ValueError: a value out of range; a strategy without a share of patches drawn at random.

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> threshold = dict(type="difficulty", target_gain=1.2)
        >>> masking = AdversarialMasking(threshold=threshold, random_share=0.25)
    """

    errors: Tensor
    ratio: Tensor

    def __init__(
        self,
        target_gain: float = 1.2,
        ratio_range: tuple[float, float] = (0.05, 0.95),
        rate: float = 0.1,
    ) -> None:
        super().__init__(ratio_range, rate)
        if not target_gain > 0 or target_gain == 1 or math.isinf(target_gain):
            raise ValueError(
                "target_gain is the error of masked patches over that of random ones, above 0 and "
                f"not 1 (random masks have 1 at any ratio), got {target_gain}"
            )
        self.target_gain = target_gain
        # Running sums of error and count: by score, at random. 0 until the first step.
        self.register_buffer("errors", torch.zeros(2, 2))
        self.register_buffer("ratio", torch.zeros(()))  # 0 until the first step
        self.begin: float | None = None

    def target(self, candidates: Candidates) -> Tensor:
        first: float = super().target(candidates)  # type: ignore[assignment]
        # A mask_ratio that was set anew in training is where the ratio goes on from.
        anew = self.begin not in (None, first)
        ratio = torch.where((self.ratio > 0) & (not anew), self.ratio, first)
        if self.training:
            self.begin = first
            if anew:
                self._shift(ratio)
            self.ratio.copy_(ratio)
        return ratio

    def _shift(self, ratio: Tensor) -> None:
        """Go on from another ratio, with levels that tracking would have to find out otherwise."""
        for level in (self.level, self.eval_level):
            level.copy_((level + ratio - self.ratio).clamp(1e-6, 1.0))
        self.ratio.copy_(ratio)

    def check(self, schedules: Mapping[str, Schedule]) -> None:
        super().check(schedules)
        share, strength = schedules["random_share"], schedules["strength"]
        if not min(share.start, share.end) > 0 or share.start == share.end == 1:
            raise ValueError(
                "threshold 'difficulty' measures the masks beside patches drawn at random and "
                f"expected random_share > 0 all the time, and not 1, such as 0.25, got {share}"
            )
        sign = math.copysign(1.0, math.log(self.target_gain))
        if max(sign * strength.start, sign * strength.end) < 0:
            raise ValueError(
                "threshold 'difficulty' expected a target_gain above 1 where strength > 0 seeks "
                f"hard masks, and below where strength < 0 seeks easy ones, got {self.target_gain} "
                f"with strength={strength.start}"
            )
        if "mask_ratio" in schedules and schedules["mask_ratio"].moves:
            raise ValueError(
                "threshold 'difficulty' moves the ratio itself and expected a mask_ratio to begin "
                f"with, a number, got {schedules['mask_ratio']}"
            )

    def log_values(self) -> dict[str, Tensor]:
        return {"running_gain": self.running_gain.detach().clone()}

    @property
    def running_gain(self) -> Tensor:
        """g, a scalar: error of patches masked by score over error of those drawn at random.

        Not a number before the first step.
        """
        chosen, random = self.errors[:, 0] / self.errors[:, 1]
        return chosen / random

    @torch.no_grad()
    def observe(self, error: Tensor, chosen: PatchMask, drawn_at_random: Tensor | None) -> None:
        """Take the errors of a step's masks, and move the ratio.

        Raises:
            ValueError: no patch was drawn at random.
        """
        if drawn_at_random is None:
            raise ValueError("threshold 'difficulty' expected random_share > 0 all the time")
        random = drawn_at_random & chosen.mask.bool()
        by_score = chosen.mask.bool() & ~random
        error = error.detach().to(self.errors.dtype)
        sums = [(part * weight).sum() for part in (by_score, random) for weight in (error, 1.0)]
        found = mean_over_ranks(torch.stack(sums).reshape(2, 2))
        found = found / found[:, 1].sum()
        started = self.errors.sum() > 0
        self.errors.copy_(torch.where(started, self.errors.lerp(found, self.rate), found))
        missed = self.running_gain.log() - math.log(self.target_gain)
        # Errors of 0, or a batch without a chosen or a random patch, say nothing.
        missed = torch.where(missed.isfinite(), missed.clamp(-1, 1), 0.0)
        step = math.copysign(RATIO_RATE * self.rate, math.log(self.target_gain)) * missed
        low, high = self.ratio_range
        self._shift((self.ratio + step).clamp(low, high))
