"""``quantile``: the same count for every image, MAE's own."""

from __future__ import annotations

from amn_masking.counts import count_masked
from amn_masking.thresholds.base import Candidates, Selection, Threshold


class Quantile(Threshold):
    """tau is the order statistic that masks exactly ``L - int(L * (1 - mask_ratio))`` patches.

    The count is that of He et al., "Masked Autoencoders Are Scalable Vision Learners"
    (arXiv:2111.06377), bit for bit. tau is the largest visible priority, so that priority > tau is
    the mask wherever no priorities are equal; equal ones are ordered at random.

    Example:
        >>> import torch
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(mask_ratio=0.75, threshold=dict(type="quantile"))
        >>> masking(torch.rand(2, 3, 64, 64)).mask.sum(1)
        tensor([12., 12.])
    """

    takes_ratio = True

    def forward(self, candidates: Candidates) -> Selection:
        """Raises ValueError where ``mask_ratio`` leaves no patch masked, or none visible."""
        ratio: float = candidates.mask_ratio  # type: ignore[assignment]
        return candidates.select(count_masked(candidates.length, ratio))
