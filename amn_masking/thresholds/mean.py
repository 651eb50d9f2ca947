"""``mean``: the specification's dynamic threshold, a free count per image."""

from __future__ import annotations

import torch
from torch import Tensor

from amn_masking.network import to_logits
from amn_masking.thresholds.selection import Selection, Threshold, count_range, select


class Mean(Threshold):
    """tau = scale * mean of the image's own scores; masked where score > tau.

    The count is free within ``ratio_range``. An image outside it gets the nearest bound, by
    order of score. Scores of standardised logits have a mean near 0.5, and exploration noise
    pushes some patches over any tau below 1: what share a scale gives is best read off the log.

    Args:
        scale: > 0; more masks fewer patches.
        ratio_range: least and largest share of masked patches, in [0, 1]. One patch is always
            masked and one visible.

    Raises:
        ValueError: a value out of range.
    """

    free_counts = True

    def __init__(self, scale: float = 1.0, ratio_range: tuple[float, float] = (0.05, 0.95)) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale multiplies the mean score and must be positive, got {scale}")
        self.scale = scale
        self.ratio_range = check_ratio_range(ratio_range)

    def forward(
        self,
        keys: Tensor,
        scores: Tensor,
        grid: tuple[int, int],
        random_share: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Selection:
        tau = self.scale * scores.mean(1, keepdim=True)
        return select_above(keys, tau, self.ratio_range, grid, random_share, generator)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, ratio_range={self.ratio_range}"


def check_ratio_range(ratio_range: tuple[float, float]) -> tuple[float, float]:
    """The range as a pair.

    Raises:
        ValueError: not two numbers with 0 <= low <= high <= 1.
    """
    try:
        low, high = ratio_range
    except TypeError:
        raise ValueError(
            f"ratio_range expected two numbers (low, high), got {ratio_range!r}"
        ) from None
    if not 0 <= low <= high <= 1:
        raise ValueError(
            "ratio_range is the least and the largest share of masked patches, "
            f"0 <= low <= high <= 1, got {ratio_range}"
        )
    return float(low), float(high)


def select_above(
    keys: Tensor,
    tau: Tensor,
    ratio_range: tuple[float, float],
    grid: tuple[int, int],
    random_share: float,
    generator: torch.Generator | None,
) -> Selection:
    """Mask where sigmoid(key) > tau, with each image's count held within ``ratio_range``.

    Args:
        keys: ``(B, L)``.
        tau: ``(B, 1)`` on the scale of the scores, (0, 1).
        ratio_range: least and largest share of masked patches.
        grid: patches per column and per row.
        random_share: as for :class:`Threshold`.
        generator: source of randomness.
    """
    least, most = count_range(keys.shape[1], ratio_range)
    tau_logit = to_logits(tau)
    wanted = (keys > tau_logit).sum(1)
    num_masked = wanted.clamp(least, most)
    selection = select(keys, num_masked, grid, random_share, generator)
    # Where a bound cut the count, the threshold that is in force is the order statistic.
    selection.tau = torch.where((wanted == num_masked)[:, None], tau_logit, selection.tau)
    selection.free_counts = True
    return selection
