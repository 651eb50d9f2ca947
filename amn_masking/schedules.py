"""Numbers that move over the course of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from amn_masking.config import build

Unit = Literal["progress", "iter", "epoch"]


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
        until: when it arrives; not before ``begin``. By progress it is 1, the end of training.
        by: what ``begin`` and ``until`` count: the ``'progress'`` of training, the share of it that
            is done, in [0, 1]; or ``'iter'`` or ``'epoch'``, from 0. Epochs count in fractions, so
            that the value moves with every step.

    Raises:
        ValueError: another unit; ``begin`` and ``until`` are not in order, negative, not finite, or
            no shares; or iterations or epochs without ``until``.

    Example:
        >>> warm_up = Schedule(start=0.0, end=1.0, begin=5, until=20, by="epoch")
        >>> warm_up(0.5, iteration=1000, epoch=12.5)
        0.5
    """

    start: float
    end: float
    begin: float = 0.0
    until: float | None = None
    by: Unit = "progress"

    def __post_init__(self) -> None:
        if not isinstance(self.start, Real) or not isinstance(self.end, Real):
            raise TypeError(
                f"a schedule goes from one number to another, got start={self.start!r} and "
                f"end={self.end!r}"
            )
        if self.by not in ("progress", "iter", "epoch"):
            raise ValueError(f"a schedule counts by='progress', 'iter' or 'epoch', got {self.by!r}")
        if self.until is None:
            if self.by != "progress":
                raise ValueError(
                    f"a schedule by={self.by!r} expected until=<when it arrives>; "
                    "by='progress' alone ends with the training by itself"
                )
            object.__setattr__(self, "until", 1.0)
        last = 1.0 if self.by == "progress" else math.inf
        if not 0 <= self.begin <= self.until <= last or math.isinf(self.until):
            raise ValueError(
                "a schedule moves from begin to until, 0 <= begin <= until, and until <= 1 where "
                "they are shares of training (by='progress'); for iterations or epochs say "
                "by='iter' or by='epoch'. Got "
                f"begin={self.begin}, until={self.until}, by={self.by!r}"
            )

    @property
    def moves(self) -> bool:
        """Whether it is more than one constant number."""
        return self.start != self.end

    def __call__(
        self, progress: float, iteration: float | None = None, epoch: float | None = None
    ) -> float:
        """Value at one point of the training.

        Args:
            progress: share of the training that is done, in [0, 1].
            iteration: iterations that are done; only ``by='iter'`` asks for it.
            epoch: epochs that are done, 2.5 in the middle of the third; only ``by='epoch'`` asks.

        Raises:
            ValueError: what the schedule counts is not given.
        """
        now = {"progress": progress, "iter": iteration, "epoch": epoch}[self.by]
        if now is None:
            raise ValueError(
                f"a schedule by={self.by!r} cannot know where it is. Elsewhere than in mmengine "
                "call set_progress(step / steps, iteration=step, epoch=step / steps_per_epoch); "
                "in mmengine epochs are counted by an EpochBasedTrainLoop only, with another loop "
                "use by='iter'"
            )
        until: float = self.until  # type: ignore[assignment]
        if now >= until:
            return self.end
        if now <= self.begin:
            return self.start
        done = (now - self.begin) / (until - self.begin)
        return self.start + done * (self.end - self.start)


def as_schedule(value: float | Mapping[str, Any] | Schedule, name: str) -> Schedule:
    """A schedule from a number, from ``dict(type='linear', start=..., end=..., ...)``, or itself.

    Raises:
        ValueError: an unknown type, or a schedule that cannot be.
        TypeError: none of the three, an argument too many or too few, or ends that are no numbers.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Schedule(float(value), float(value))
    if not isinstance(value, (Mapping, Schedule)):
        raise TypeError(
            f"{name} must be a number or dict(type='linear', start=..., end=...), got {value!r}"
        )
    try:
        return build(value, Schedule, {"linear": Schedule}, name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


class Fixed:
    """A setting of a strategy that is checked, by the model that it is for too, when it is made.

    Raises:
        AttributeError: on setting it later.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, strategy: Any, owner: type | None = None) -> Any:
        return self if strategy is None else strategy.__dict__[self.name]

    def __set__(self, strategy: Any, value: Any) -> None:
        if self.name in strategy.__dict__:
            raise AttributeError(
                f"{self.name} is fixed when a strategy is made, and was checked together with the "
                f"model; make another {type(strategy).__name__} with {self.name}={value!r}"
            )
        strategy.__dict__[self.name] = value


class Scheduled:
    """A number of a strategy that may move over the course of training.

    It is set to a number or to a schedule, at any time, and read as the number of now, None where
    it was never set. The owner has ``schedules``, a dict of :class:`Schedule` by name,
    ``progress``, the arguments of its last ``set_progress``, and ``number_set()``, which is called.

    Args:
        low: least value.
        high: largest value.
        inside: whether both bounds are excluded.

    Raises:
        ValueError: on setting, a value out of range.
        TypeError: on setting, neither a number nor a schedule.
    """

    def __init__(self, low: float, high: float, inside: bool = False) -> None:
        self.low, self.high, self.inside = low, high, inside

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.slot = name, f"_{name}"

    def __get__(self, strategy: Any, owner: type | None = None) -> Any:
        return self if strategy is None else getattr(strategy, self.slot, None)

    def __set__(self, strategy: Any, value: float | Mapping[str, Any] | Schedule) -> None:
        schedule = as_schedule(value, self.name)
        for end in (schedule.start, schedule.end):
            at_bound = end in (self.low, self.high)
            if not self.low <= end <= self.high or (self.inside and at_bound):
                allowed = f"{self.low:g}, {self.high:g}"
                allowed = f"({allowed})" if self.inside else f"[{allowed}]"
                raise ValueError(f"{self.name} must lie in {allowed}, got {end}")
        strategy.schedules[self.name] = schedule
        setattr(strategy, self.slot, schedule(*strategy.progress))
        strategy.number_set()
