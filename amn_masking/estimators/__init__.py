"""From a hard mask and its logits to a surrogate mask, and to the masking network's objective."""

from amn_masking.estimators.base import Estimator
from amn_masking.estimators.gumbel import Gumbel
from amn_masking.estimators.inclusion import Inclusion
from amn_masking.estimators.ranking import Ranking
from amn_masking.estimators.score_function import ScoreFunction
from amn_masking.estimators.straight_through import StraightThrough

ESTIMATORS: dict[str, type[Estimator]] = {
    "inclusion": Inclusion,  # the first is the default
    "straight_through": StraightThrough,
    "gumbel": Gumbel,
    "score_function": ScoreFunction,
    "ranking": Ranking,
}

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Gumbel",
    "Inclusion",
    "Ranking",
    "ScoreFunction",
    "StraightThrough",
]
