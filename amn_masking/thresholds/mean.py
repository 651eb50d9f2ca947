"""``mean``: the specification's dynamic threshold, a free count per image."""

from __future__ import annotations

from amn_masking.counts import check_ratio_range
from amn_masking.thresholds.base import Candidates, Selection, Threshold


class Mean(Threshold):
    """tau = scale * mean of the image's own scores; masked where score > tau.

    The count is free within ``ratio_range``, and no ``mask_ratio`` is taken. An image outside the
    range gets the nearest bound, by order of score. Scores of standardised logits have a mean near
    0.5, and exploration noise pushes some patches over any tau below 1: what share a scale gives is
    best read off the log.

    Args:
        scale: > 0; more masks fewer patches.
        ratio_range: least and largest share of masked patches, in [0, 1]. One patch is always
            masked and one visible.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> import torch
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(threshold=dict(type="mean", ratio_range=(0.25, 0.75)))
        >>> counts = masking(torch.rand(8, 3, 64, 64)).mask.sum(1)  # differ between the images
        >>> bool(((4 <= counts) & (counts <= 12)).all())
        True
    """

    free_counts = True

    def __init__(self, scale: float = 1.0, ratio_range: tuple[float, float] = (0.05, 0.95)) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale multiplies the mean score and must be positive, got {scale}")
        self.scale = scale
        self.ratio_range = check_ratio_range(ratio_range)

    def forward(self, candidates: Candidates) -> Selection:
        return candidates.select_above(self.scale * candidates.mean_score(), self.ratio_range)
