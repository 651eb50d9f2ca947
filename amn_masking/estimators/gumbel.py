"""``gumbel``: as straight-through, with the gradient at the noisy logits that made the mask."""

from __future__ import annotations

from torch import Tensor

from amn_masking.estimators.straight_through import StraightThrough
from amn_masking.thresholds.base import Selection


class Gumbel(StraightThrough):
    """surrogate = m + (p - sg(p)), p = sigmoid((z + g - tau) / T), g the noise of the mask.

    A relaxed top-K: the Gumbel-softmax of Jang, Gu, Poole (arXiv:1611.01144) and Maddison, Mnih,
    Teh (arXiv:1611.00712), carried to K of L patches by the threshold in place of the softmax
    (compare Xie, Ermon, arXiv:1901.10517). tau moves with the logits as in straight-through.
    Biased; the bias shrinks and the variance grows as T goes to 0.

    Args:
        temperature: T > 0 of the sigmoid.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(mask_ratio=0.5, estimator=dict(type="gumbel"))
        >>> type(masking.estimator).__name__
        'Gumbel'
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        noisy = priorities + (logits - logits.detach())
        return super().surrogate(noisy, priorities, selection)
