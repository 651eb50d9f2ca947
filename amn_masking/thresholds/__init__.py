"""From patch logits to a hard mask, by a threshold of each image's own."""

from amn_masking.thresholds.base import Candidates, Selection, Threshold
from amn_masking.thresholds.constant import Constant
from amn_masking.thresholds.difficulty import Difficulty
from amn_masking.thresholds.mean import Mean
from amn_masking.thresholds.quantile import Quantile
from amn_masking.thresholds.tracking import Tracking

THRESHOLDS: dict[str, type[Threshold]] = {
    "quantile": Quantile,
    "constant": Constant,
    "mean": Mean,
    "tracking": Tracking,
    "difficulty": Difficulty,
}

__all__ = [
    "THRESHOLDS",
    "Candidates",
    "Constant",
    "Difficulty",
    "Mean",
    "Quantile",
    "Selection",
    "Threshold",
    "Tracking",
]
