"""Numbers that move over the course of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """``start`` until ``begin``, then a straight line to ``end`` at ``until``, then ``end``.

    ``dict(type='linear', start=0., end=1., begin=5, until=20, by='epoch')`` is a warm-up: nothing
    for 5 epochs, then more with every step, all of it after 20. A schedule may reach beyond the
    end of training, as mmengine's do, so that a short trial goes as the long recipe begins.

    Args:
        start: first value.
        end: last value.
        begin: when the value starts to move.
        until: when it arrives; not before ``begin``.
        by: what ``begin`` and ``until`` count: the ``'share'`` of training that is done, in
            [0, 1]; or ``'iter'`` or ``'epoch'``, from 0. Epochs count in fractions, so that the
            value moves with every step.

    Raises:
        ValueError: another unit; or ``begin`` and ``until`` are not in order, negative, not
            finite, or no shares.
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    by: str = "share"

    def __post_init__(self) -> None:
        if self.by not in ("share", "iter", "epoch"):
            raise ValueError(f"a schedule counts by='share', 'iter' or 'epoch', got {self.by!r}")
        last = 1.0 if self.by == "share" else math.inf
        if not 0 <= self.begin <= self.until <= last or math.isinf(self.until):
            raise ValueError(
                "a schedule moves from begin to until, 0 <= begin <= until, and until <= 1 where "
                "they are shares of training (by='share'); for iterations or epochs say by='iter' "
                f"or by='epoch'. Got begin={self.begin}, until={self.until}, by={self.by!r}"
            )

    def __call__(
        self, share: float, iteration: float | None = None, epoch: float | None = None
    ) -> float:
        """Value at one point of the training.

        Args:
            share: of the training that is done, in [0, 1].
            iteration: iterations that are done; only ``by='iter'`` asks for it.
            epoch: epochs that are done, 2.5 in the middle of the third; only ``by='epoch'`` asks.

        Raises:
            ValueError: what the schedule counts is not given.
        """
        now = {"share": share, "iter": iteration, "epoch": epoch}[self.by]
        if now is None:
            raise ValueError(
                f"a schedule by={self.by!r} cannot know where it is. Elsewhere than in mmengine "
                "call set_progress(step / steps, iteration=step, epoch=step / steps_per_epoch); "
                "in mmengine epochs are counted by an EpochBasedTrainLoop only, with another loop "
                "use by='iter'"
            )
        if now <= self.begin:
            return self.start if now < self.until else self.end
        if now >= self.until:
            return self.end
        done = (now - self.begin) / (self.until - self.begin)
        return self.start + done * (self.end - self.start)


def as_schedule(value: float | Mapping[str, Any], name: str, low: float, high: float) -> Schedule:
    """A schedule from a number or from ``dict(type='linear', start=..., end=..., ...)``.

    Raises:
        ValueError: a value outside [``low``, ``high``], an unknown type, or iterations or epochs
            without ``until``.
        TypeError: neither a number nor a dict, or an argument too many or too few.
    """
    if isinstance(value, Mapping):
        options = {key: option for key, option in value.items() if key != "_scope_"}
        kind = options.pop("type", "linear")
        if kind != "linear":
            raise ValueError(f"unknown schedule type {kind!r} for {name}; expected 'linear'")
        unknown = sorted(set(options) - {field.name for field in fields(Schedule)})
        if unknown:
            raise TypeError(
                f"{name}: a schedule does not take {', '.join(unknown)}; it takes start, end, "
                "begin, until and by='share', 'iter' or 'epoch'"
            )
        if options.get("by") in ("iter", "epoch") and "until" not in options:
            raise ValueError(
                f"{name} is scheduled by={options['by']!r} and expected until=<when it arrives>, "
                f"got {dict(value)}; by='share' alone ends with the training by itself"
            )
        missing = sorted({"start", "end"} - options.keys())
        if missing:
            raise TypeError(
                f"{name} expected a schedule with start and end, such as dict(type='linear', "
                f"start=0.0, end=1.0), got {dict(value)} without {' and '.join(missing)}"
            )
        try:
            schedule = Schedule(**options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
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
