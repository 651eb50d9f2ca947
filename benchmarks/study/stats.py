"""Paired comparisons: differences by seed, bootstrap intervals, Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ENOUGH = 5  # seeds, below which an interval or a p-value would mean little


@dataclass(frozen=True)
class Comparison:
    """One strategy beside another, seed by seed.

    Attributes:
        differences: one per seed that both have.
        mean: of the differences.
        low, high: their bootstrap 95 % interval (BCa); nan with fewer than ``ENOUGH`` seeds.
        p: of the paired t-test, two-sided; nan as above.
    """

    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    p: float


def compare(one: Mapping[int, float], other: Mapping[int, float]) -> Comparison:
    """One minus other, over the seeds that both have.

    Args:
        one: a value by seed.
        other: the same.

    Raises:
        ValueError: no seed in common.
    """
    seeds = sorted(set(one) & set(other))
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(one)} and {sorted(other)}")
    differences = np.array([one[seed] - other[seed] for seed in seeds])
    low = high = p = np.nan
    if len(seeds) >= ENOUGH:
        low, high = bootstrap_interval(differences)
        p = 1.0 if np.ptp(differences) == 0 else float(stats.ttest_1samp(differences, 0).pvalue)
    return Comparison(tuple(differences), float(differences.mean()), low, high, p)


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 %, of the mean."""
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    interval = stats.bootstrap(
        (differences,), np.mean, n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are (Holm, 1979); nan stays and does not count.

    Returns:
        In the order given: the largest, over the p-values up to this one in ascending order, of p
        times the number of those not smaller, at most 1.
    """
    p = np.asarray(p_values, float)
    corrected = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p) if not np.isnan(p[index])]
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p[index] * (len(order) - rank)))
        corrected[index] = highest
    return corrected.tolist()
