"""``tracking``: free counts per image whose mean holds a target ratio."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from amn_masking.counts import check_ratio_range
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

    Both move in ``train()`` only, where the scores carry the exploration noise. In ``eval()`` there
    is none, and the ratio is another: use ``quantile`` where it has to be held there. Scores are
    told apart down to 1e-6 from 0 and 1; logits of a temperature below about 0.1 crowd there, and
    the target is missed.

    Offset and level are buffers: saved in checkpoints, and under ``torch.distributed`` averaged
    over the ranks in every step, so equal on all of them.

    Args:
        ratio_range: least and largest share in any one image; ``mask_ratio`` lies between them.
        rate: of the running mean, in (0, 1]; about 1 / rate steps to follow a change.

    Raises:
        ValueError: a value out of range; in ``forward``, a ``mask_ratio`` outside ``ratio_range``.
    """

    free_counts = True
    offset: Tensor
    level: Tensor

    def __init__(self, ratio_range: tuple[float, float] = (0.05, 0.95), rate: float = 0.1) -> None:
        super().__init__()
        self.ratio_range = check_ratio_range(ratio_range)
        if not 0 < rate <= 1:
            raise ValueError(f"rate is that of a running mean, in (0, 1], got {rate}")
        self.rate = rate
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("level", torch.zeros(()))  # 0 until the first step

    def forward(self, candidates: Candidates) -> Selection:
        target = self.target(candidates)
        mean = candidates.mean_score()
        if not self.training:
            return candidates.select_above(mean + self.offset, self.ratio_range)
        deviations = torch.sigmoid(candidates.priorities) - mean.detach()
        if candidates.valid is None:
            deviations = deviations.flatten().sort().values
        else:
            deviations = deviations[candidates.valid].sort().values
        started = self.level > 0
        level = torch.where(started, self.level, target)
        offset = torch.where(started, self.offset, upper_quantile(deviations, level))
        selection = candidates.select_above(mean + offset, self.ratio_range)
        missed = target - selection.patch_mask.mask.mean()
        # Far from the batch's scores, after a jump, the ratio says nothing: come near them first.
        margin = (deviations[-1] - deviations[0]) / 2
        near = offset.clamp(deviations[0] - margin, deviations[-1] + margin)
        missed = torch.where(near == offset, missed, 0.0)
        tiny = 1e-6  # the level stays above 0, which says that there was no step yet
        level = (level + LEVEL_RATE * self.rate * missed).clamp(tiny, 1.0)
        offset = near + self.rate * (upper_quantile(deviations, level) - near)
        self._move(offset, level)
        return selection

    def target(self, candidates: Candidates) -> float | Tensor:
        """The mean share of masked patches to hold.

        Raises:
            ValueError: outside ``ratio_range``.
        """
        ratio: float = candidates.mask_ratio  # type: ignore[assignment]
        if not self.ratio_range[0] < ratio < self.ratio_range[1]:
            raise ValueError(
                f"mask_ratio={ratio} must lie inside ratio_range={self.ratio_range}, so that there "
                "is room on both sides; widen the range"
            )
        return ratio

    @torch.no_grad()
    def _move(self, offset: Tensor, level: Tensor) -> None:
        state = torch.stack([offset, level]).to(self.offset.dtype)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(state)
            state = state / distributed.get_world_size()
        self.offset.copy_(state[0])
        self.level.copy_(state[1])

    def extra_repr(self) -> str:
        return f"ratio_range={self.ratio_range}, rate={self.rate}"


def upper_quantile(ascending: Tensor, share: Tensor) -> Tensor:
    """The value above which ``share``, a scalar in [0, 1], of the sorted values lie."""
    last = ascending.numel() - 1
    # Picked on the device: an index that is read back would make every step wait.
    return ascending.gather(0, ((1 - share) * last).round().long().reshape(1)).squeeze(0)
