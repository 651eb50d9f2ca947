"""What a pilot found: of each setting a result for each round that it was in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """Of one run of one setting.

    Attributes:
        iterations: of the training.
        ruler: the masked error under random masks at 0.5, on images that were not trained on.
        accuracy: of nearest neighbours, in [0, 1]; None without labels.
    """

    iterations: int
    ruler: float
    accuracy: float | None = None

    @property
    def rank(self) -> float:
        """Smaller is better; a run that diverged is the worst."""
        value = self.ruler if self.accuracy is None else -self.accuracy
        return value if math.isfinite(value) else math.inf


def line_of(result: Result) -> str:
    """A result in words."""
    line = f"{result.iterations:6d} iterations  ruler {result.ruler:.4f}"
    return line if result.accuracy is None else f"{line}  k-NN {result.accuracy:.4f}"


def table(results: Mapping[str, Sequence[Result]]) -> str:
    """A line for each setting, the best first: of what came furthest the better."""
    rounds = max(map(len, results.values()))
    order = sorted(results, key=lambda name: (-len(results[name]), results[name][-1].rank))
    labelled = any(result.accuracy is not None for found in results.values() for result in found)
    width = max(map(len, results))
    head = f"{'k-NN' if labelled else 'ruler'} after round"
    lines = [f"{head:{width}}" + "".join(f"{number + 1:>10}" for number in range(rounds))]
    for name in order:
        values = (r.ruler if r.accuracy is None else r.accuracy for r in results[name])
        lines.append(f"{name:{width}}" + "".join(f"{value:10.4f}" for value in values))
    return "\n".join(lines)


def best(results: Mapping[str, Sequence[Result]]) -> str:
    """The name of the setting that won."""
    return min(results, key=lambda name: (-len(results[name]), results[name][-1].rank))
