"""Numbers that move over the course of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """``start`` until ``begin``, then a straight line to ``end`` at ``until``, then ``end``.

    Args:
        start: first value.
        end: last value.
        begin: share of training, in [0, 1], at which the value starts to move.
        until: share of training at which it arrives; not before ``begin``.

    Raises:
        ValueError: ``begin`` and ``until`` are not in order within [0, 1].
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.until <= 1:
            raise ValueError(
                "a schedule moves between two shares of training, 0 <= begin <= until <= 1, got "
                f"begin={self.begin}, until={self.until}"
            )

    def __call__(self, progress: float) -> float:
        """Value when the share ``progress``, in [0, 1], of training is done."""
        if progress <= self.begin:
            return self.start if progress < self.until else self.end
        if progress >= self.until:
            return self.end
        done = (progress - self.begin) / (self.until - self.begin)
        return self.start + done * (self.end - self.start)


def as_schedule(value: float | Mapping[str, Any], name: str, low: float, high: float) -> Schedule:
    """A schedule from a number or from ``dict(type='linear', start=..., end=..., ...)``.

    Raises:
        ValueError: a value outside [``low``, ``high``], or an unknown type.
        TypeError: neither a number nor a dict, or an argument that a schedule does not take.
    """
    if isinstance(value, Mapping):
        options = {key: option for key, option in value.items() if key != "_scope_"}
        kind = options.pop("type", "linear")
        if kind != "linear":
            raise ValueError(f"unknown schedule type {kind!r} for {name}; expected 'linear'")
        schedule = Schedule(**options)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        schedule = Schedule(float(value), float(value))
    else:
        raise TypeError(
            f"{name} must be a number or dict(type='linear', start=..., end=...), got {value!r}"
        )
    for end in (schedule.start, schedule.end):
        if not low <= end <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {end}")
    return schedule
