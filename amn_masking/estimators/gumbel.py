"""``gumbel``: as straight-through, with the gradient at the noisy logits that made the mask."""

from __future__ import annotations

from torch import Tensor

from amn_masking.estimators.base import Estimator, relaxed_mask, straight_through
from amn_masking.estimators.straight_through import check_temperature
from amn_masking.thresholds.base import Selection


class Gumbel(Estimator):
    """surrogate = m + (p - sg(p)), p = sigmoid((z + g - tau) / T), g the noise of the mask.

    A relaxed top-K: the Gumbel-softmax of Jang, Gu, Poole (arXiv:1611.01144) and Maddison, Mnih,
    Teh (arXiv:1611.00712), carried to K of L patches by the threshold in place of the softmax
    (compare Xie, Ermon, arXiv:1901.10517). tau moves with the logits as in
    :class:`~amn_masking.estimators.straight_through.StraightThrough`. Biased; the bias shrinks and
    the variance grows as T goes to 0.

    Args:
        temperature: T > 0 of the sigmoid.

    Raises:
        ValueError: a value out of range.
    """

    differentiable = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(noise=1.0)
        self.temperature = check_temperature(temperature)

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        noisy = priorities + (logits - logits.detach())
        soft = relaxed_mask(noisy, selection, self.temperature)
        return straight_through(selection.patch_mask.mask, soft)
