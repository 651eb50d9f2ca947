"""``tracking``: free counts per image whose mean holds a target ratio."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from amn_masking.thresholds.mean import check_ratio_range, select_above
from amn_masking.thresholds.selection import Selection, Threshold, check_mask_ratio

# Half the width of the band of quantiles over which the controller takes the slope.
BAND = 0.1


class Tracking(Threshold):
    """tau = mean of the image's own scores + offset; a controller moves the offset.

    The offset integrates the batch's error in ratio, so that its expectation is at rest only where
    the mean ratio is ``mask_ratio``, whatever ``ratio_range`` cuts. The error is scaled by the
    slope of the scores' quantile function around the target, offset per ratio: a step then closes
    the share ``gain`` of the gap at any scale and shape of the scores, without ringing. It is the
    slope of the batch before, because this batch's own goes with its error and would bias the
    mean. An offset far outside the range of the batch's scores, after a jump, is first brought
    near it. Where there is no slope yet the batch's own quantile is the offset.

    Both move in ``train()`` only. They are buffers: saved in checkpoints, and under
    ``torch.distributed`` averaged over the ranks in every step, so equal on all of them.

    Args:
        mask_ratio: target for the mean share of masked patches, in (0, 1).
        ratio_range: least and largest share in any one image; the target lies between them.
        gain: share of the gap that one step closes, in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    free_counts = True
    offset: Tensor
    slope: Tensor

    def __init__(
        self,
        mask_ratio: float,
        ratio_range: tuple[float, float] = (0.05, 0.95),
        gain: float = 0.1,
    ) -> None:
        super().__init__()
        self.mask_ratio = check_mask_ratio(mask_ratio)
        self.ratio_range = check_ratio_range(ratio_range)
        if not self.ratio_range[0] < mask_ratio < self.ratio_range[1]:
            raise ValueError(
                f"mask_ratio={mask_ratio} must lie inside ratio_range={ratio_range}, so that there "
                "is room on both sides; widen the range"
            )
        if not 0 < gain <= 1:
            raise ValueError(f"gain is the share of the gap to close, in (0, 1], got {gain}")
        self.gain = gain
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("slope", torch.zeros(()))

    def forward(
        self,
        keys: Tensor,
        scores: Tensor,
        grid: tuple[int, int],
        random_share: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Selection:
        mean = scores.mean(1, keepdim=True)
        if not self.training:
            return self._select(keys, mean + self.offset, grid, random_share, generator)
        deviations = (torch.sigmoid(keys) - mean.detach()).flatten().sort().values
        first = quantile(deviations, 1 - self.mask_ratio)
        offset = torch.where(self.slope > 0, self.offset, first)
        selection = self._select(keys, mean + offset, grid, random_share, generator)
        error = selection.patch_mask.mask.mean() - self.mask_ratio
        margin = (deviations[-1] - deviations[0]) / 2
        inside = offset.clamp(deviations[0] - margin, deviations[-1] + margin)
        low, high = max(1 - self.mask_ratio - BAND, 0.0), min(1 - self.mask_ratio + BAND, 1.0)
        slope = (quantile(deviations, high) - quantile(deviations, low)) / (high - low)
        self._move(inside + self.gain * error * self.slope, slope)
        return selection

    def _select(self, keys: Tensor, tau: Tensor, *args: Any) -> Selection:
        return select_above(keys, tau, self.ratio_range, *args)

    @torch.no_grad()
    def _move(self, offset: Tensor, slope: Tensor) -> None:
        state = torch.stack([offset, slope]).to(self.offset.dtype)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(state)
            state = state / distributed.get_world_size()
        self.offset.copy_(state[0])
        self.slope.copy_(state[1])

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}, ratio_range={self.ratio_range}, gain={self.gain}"


def quantile(ascending: Tensor, share: float) -> Tensor:
    """The value below which ``share`` of the sorted values lie; no interpolation."""
    return ascending[round(share * (ascending.numel() - 1))]
