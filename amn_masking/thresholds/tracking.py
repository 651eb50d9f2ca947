"""``tracking``: free counts per image whose mean holds a target ratio."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed

from amn_masking.counts import check_ratio_range
from amn_masking.schedules import Schedule
from amn_masking.thresholds.base import Candidates, Selection, Threshold

# The level integrates at this share of the rate of the offset: at most a quarter, so that the two
# together do not ring (the poles of rate, LEVEL_RATE * rate stay real).
LEVEL_RATE = 0.25


class Tracking(Threshold):
    """tau = mean of the image's own scores + offset; a controller moves the offset.

    The offset is a running mean of the quantile of the batch's scores, less their image's mean,
    above which lies the share ``level``: a first-order filter, which follows at any scale and shape
    of the scores and cannot ring. The level starts at ``mask_ratio`` and integrates, more slowly,
    what the batches' ratio misses of it, so that the mean is held whatever ``ratio_range`` cuts.

    In ``eval()`` there is no exploration noise, and the same offset would give another ratio. So
    there is a second pair for it, which follows the scores without noise. All move in ``train()``
    only; before the first training step each image has the offset that gives it the target. Scores
    are told apart down to 1e-6 from 0 and 1; logits of a temperature below about 0.1 crowd there,
    and the target is missed.

    Offsets and levels are buffers, in float32 whatever the module's type: saved in checkpoints, and
    under ``torch.distributed`` averaged over the ranks in every step, so equal on all of them.

    Args:
        ratio_range: least and largest share in any one image; ``mask_ratio`` lies between them.
        rate: of the running mean, in (0, 1]; about 1 / rate steps to follow a change.

    Raises:
        ValueError: a value out of range; a ``mask_ratio``, or an end of its schedule, outside
            ``ratio_range``.

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(mask_ratio=0.5, threshold=dict(type="tracking"))
        >>> masking.free_counts
        True
    """

    free_counts = True
    takes_ratio = True
    offset: Tensor
    level: Tensor
    eval_offset: Tensor
    eval_level: Tensor

    def __init__(self, ratio_range: tuple[float, float] = (0.05, 0.95), rate: float = 0.1) -> None:
        super().__init__()
        self.ratio_range = check_ratio_range(ratio_range)
        if not 0 < rate <= 1:
            raise ValueError(f"rate is that of a running mean, in (0, 1], got {rate}")
        self.rate = rate
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("level", torch.zeros(()))  # 0 until the first step
        self.register_buffer("eval_offset", torch.zeros(()))
        self.register_buffer("eval_level", torch.zeros(()))

    def forward(self, candidates: Candidates) -> Selection:
        target = self.target(candidates)
        mean = candidates.mean_score()
        plain = candidates.scores.detach() - mean.detach()  # type: ignore[union-attr]
        if not self.training:
            own = own_offsets(plain, target, candidates.valid)
            offset = torch.where(self.eval_level > 0, self.eval_offset, own)
            return candidates.select_above(mean + offset, self.ratio_range)
        plain_sorted = self._sorted(plain, candidates)
        eval_offset, eval_level = self._start(
            self.eval_offset, self.eval_level, plain_sorted, target
        )
        noisy = self._sorted(torch.sigmoid(candidates.priorities) - mean.detach(), candidates)
        offset, level = self._start(self.offset, self.level, noisy, target)
        selection = candidates.select_above(mean + offset, self.ratio_range)
        ratio = selection.patch_mask.mask.mean()
        _, counts = candidates.count_above(plain, eval_offset, self.ratio_range)
        eval_ratio = counts.to(ratio.dtype).mean() / candidates.length
        self._move(
            *self._follow(offset, level, noisy, target - ratio),
            *self._follow(eval_offset, eval_level, plain_sorted, target - eval_ratio),
        )
        return selection

    def _sorted(self, deviations: Tensor, candidates: Candidates) -> Tensor:
        """All valid patches' deviations, ascending."""
        if candidates.valid is None:
            return deviations.flatten().sort().values
        return deviations[candidates.valid].sort().values

    def _start(
        self, offset: Tensor, level: Tensor, ascending: Tensor, target: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Offset and level as they are, or where they begin."""
        started = level > 0
        level = torch.where(started, level, target)
        return torch.where(started, offset, upper_quantile(ascending, level)), level

    def _follow(
        self, offset: Tensor, level: Tensor, ascending: Tensor, missed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Offset and level after a step whose ratio missed the target by ``missed``."""
        # Far from the batch's scores, after a jump, the ratio says nothing: come near them first.
        margin = (ascending[-1] - ascending[0]) / 2
        near = offset.clamp(ascending[0] - margin, ascending[-1] + margin)
        missed = torch.where(near == offset, missed, 0.0)
        tiny = 1e-6  # the level stays above 0, which says that there was no step yet
        level = (level + LEVEL_RATE * self.rate * missed).clamp(tiny, 1.0)
        return near + self.rate * (upper_quantile(ascending, level) - near), level

    def target(self, candidates: Candidates) -> float | Tensor:
        """The mean share of masked patches to hold."""
        return self.inside(candidates.mask_ratio)  # type: ignore[arg-type]

    def check(self, schedules: Mapping[str, Schedule]) -> None:
        if (ratio := schedules.get("mask_ratio")) is not None:
            self.inside(ratio.start)
            self.inside(ratio.end)

    def inside(self, ratio: float) -> float:
        """The ratio itself.

        Raises:
            ValueError: outside ``ratio_range``.
        """
        if not self.ratio_range[0] < ratio < self.ratio_range[1]:
            raise ValueError(
                f"mask_ratio={ratio} must lie inside ratio_range={self.ratio_range}, so that there "
                "is room on both sides; widen the range"
            )
        return ratio

    @torch.no_grad()
    def _move(self, *numbers: Tensor) -> None:
        state = mean_over_ranks(torch.stack(numbers).to(self.offset.dtype))
        buffers = (self.offset, self.level, self.eval_offset, self.eval_level)
        for buffer, value in zip(buffers, state, strict=True):
            buffer.copy_(value)


def mean_over_ranks(values: Tensor) -> Tensor:
    """The values as they are on average over the ranks of ``torch.distributed``, if there are."""
    if not distributed.is_available() or not distributed.is_initialized():
        return values
    distributed.all_reduce(values)
    return values / distributed.get_world_size()


def own_offsets(deviations: Tensor, share: float | Tensor, valid: Tensor | None) -> Tensor:
    """``(B, 1)`` a value above which that share of a row's patches lies, all of them valid: halfway
    between two patches, so that rounding moves neither to the other side.
    """
    if valid is None:
        valid = torch.ones_like(deviations, dtype=torch.bool)
    number = valid.sum(1, keepdim=True)
    wanted = (share * torch.full_like(number, deviations.shape[1])).round().long()
    above = wanted.minimum(number - 1).clamp_min(1)
    descending = deviations.masked_fill(~valid, float("-inf")).sort(1, descending=True).values
    return (descending.gather(1, above - 1) + descending.gather(1, above)) / 2


def upper_quantile(ascending: Tensor, share: Tensor) -> Tensor:
    """The value above which ``share``, a scalar in [0, 1], of the sorted values lie."""
    last = ascending.numel() - 1
    # Picked on the device: an index that is read back would make every step wait.
    return ascending.gather(0, ((1 - share) * last).round().long().reshape(1)).squeeze(0)
