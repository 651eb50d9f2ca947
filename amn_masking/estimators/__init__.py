"""From a hard mask and its logits to a surrogate mask, and to the masking network's objective."""

from amn_masking.estimators.base import Estimator
from amn_masking.estimators.straight_through import StraightThrough

ESTIMATORS: dict[str, type[Estimator]] = {"straight_through": StraightThrough}

__all__ = ["ESTIMATORS", "Estimator", "StraightThrough"]
