"""``straight_through``: the hard mask forward, a sigmoid's gradient backward."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from amn_masking.estimators.base import Estimator, relaxed_mask, straight_through
from amn_masking.thresholds.base import Selection


class StraightThrough(Estimator):
    """surrogate = m + (p - sg(p)), p = sigmoid((z - tau) / T).

    Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons"
    (arXiv:1308.3432), with the threshold that made the mask in place of a fixed one. The gradient
    is taken at the logits without noise. Biased, of low variance.

    tau moves with the logits so that sum(p) stays what it is::

        d p_i = p_i (1 - p_i) / T * (d z_i - sum(p (1 - p) d z) / sum(p (1 - p)))

    so an image's gradients sum to 0. With tau held still they do not, and scores that are not
    standardised drift together to 0 or 1, where there is no gradient any more, and free counts to
    the end of their range.

    Args:
        temperature: T > 0 of the sigmoid; smaller looks only at patches near the threshold.
        noise: scale >= 0 of the noise on the logits when the mask is chosen; 0 is deterministic.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(mask_ratio=0.5, estimator=dict(type="straight_through"))
        >>> type(masking.estimator).__name__
        'StraightThrough'
    """

    differentiable = True

    def __init__(self, temperature: float = 1.0, noise: float = 1.0) -> None:
        super().__init__(noise)
        if not isinstance(temperature, Real) or not temperature > 0:
            raise ValueError(
                f"temperature of an estimator must be a positive number, got {temperature!r}; what "
                "may move is the strategy's own temperature"
            )
        self.temperature: float = float(temperature)

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        soft = relaxed_mask(logits, selection, self.temperature)
        return straight_through(selection.patch_mask.mask, soft)
