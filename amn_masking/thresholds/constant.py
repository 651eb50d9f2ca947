"""``constant``: one threshold for all images, a free count per image."""

from __future__ import annotations

import torch

from amn_masking.counts import check_ratio_range
from amn_masking.thresholds.base import Candidates, Selection, Threshold


class Constant(Threshold):
    """tau = value; masked where score > value.

    The simplest threshold of the original loop, ``scores > value``. The count is free within
    ``ratio_range``, and no ``mask_ratio`` is taken. It is meant for ``standardise=False``: with
    standardised logits about half of an image's scores lie above 0.5, whatever the image. The ratio
    is then the network's to choose, and may end at either end of ``ratio_range``.

    Args:
        value: in (0, 1), on the scale of the scores.
        ratio_range: least and largest share of masked patches, in [0, 1]. An image outside it gets
            the nearest bound, by order of score.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(threshold=dict(type="constant"))
        >>> masking.free_counts
        True
    """

    free_counts = True

    def __init__(self, value: float = 0.5, ratio_range: tuple[float, float] = (0.05, 0.95)) -> None:
        super().__init__()
        if not 0 < value < 1:
            raise ValueError(f"value is a score, in (0, 1), got {value}")
        self.value = value
        self.ratio_range = check_ratio_range(ratio_range)

    def forward(self, candidates: Candidates) -> Selection:
        tau = torch.full_like(candidates.priorities[:, :1], self.value)
        return candidates.select_above(tau, self.ratio_range)
