"""How much of a learned mask is drawn at random, where its user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amn_masking.estimators import ScoreFunction
from amn_masking.schedules import Schedule, Scheduled

# From here on a strength is adversarial, and a ratio large: docs/choosing.md, "What goes wrong".
FULL, LARGE = 0.5, 0.7
NONE, GENTLE = Schedule(0.0, 0.0), Schedule(1.0, 0.5)


class RandomShare(Scheduled):
    """``random_share``, which is the user's own once it was set."""

    def __set__(self, strategy: Any, value: float | Mapping[str, Any] | Schedule) -> None:
        strategy.own_share = True
        super().__set__(strategy, value)


def settle(strategy: Any) -> None:
    """Let a share that was not said follow ratio and strength, whenever one of them is set."""
    if getattr(strategy, "own_share", False):
        return
    cannot = strategy.free_counts and isinstance(strategy.estimator, ScoreFunction)
    fitting = GENTLE if is_harsh(strategy) and not cannot else NONE
    now = strategy.schedules.get("random_share")
    if now is None or now.start != fitting.start:
        strategy.schedules["random_share"] = fitting
        strategy._random_share = fitting(*strategy.progress)


def is_harsh(strategy: Any) -> bool:
    """Whether the strategy is an adversary throughout, at a large ratio of what is predicted."""
    ratios = strategy.ends("prediction_ratio") or strategy.ends("mask_ratio")
    strength = strategy.schedules.get("strength")
    adversarial = strength is not None and min(strength.start, strength.end) >= FULL
    return adversarial and bool(ratios) and min(ratios) >= LARGE
