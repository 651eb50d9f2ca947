"""How much a strategy masks and predicts: its two ratios, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Generator

from amn_masking.counts import count_masked, count_visible
from amn_masking.mask import PatchMask
from amn_masking.prediction import leave_out, predict_some
from amn_masking.schedules import Schedule, Scheduled

Ratio = float | Mapping[str, Any] | Schedule
"""A number, or a schedule of it: an object or ``dict(type='linear', start=..., end=...)``."""


class MaskRatio(Scheduled):
    """``mask_ratio``, where the strategy takes one; ``default_ratio`` until it is set."""

    def __get__(self, strategy: Any, owner: type | None = None) -> Any:
        given = super().__get__(strategy, owner)
        if given is None and strategy.takes_ratio:
            return strategy.default_ratio
        return given

    def __set__(self, strategy: Any, value: Ratio) -> None:
        strategy.check_takes_ratio()
        super().__set__(strategy, value)


class PredictionRatio(Scheduled):
    """``prediction_ratio``, of a strategy whose masks are all of one size; None takes it away."""

    def __set__(self, strategy: Any, value: Ratio | None) -> None:
        if value is None:
            strategy.schedules.pop(self.name, None)
            setattr(strategy, self.slot, None)
            strategy.number_set()
            return
        strategy.check_takes_prediction()
        super().__set__(strategy, value)


class RatioMixin:
    """The part of :class:`~amn_masking.strategies.MaskingStrategy` that counts patches."""

    takes_ratio: bool = False
    default_ratio: float = 0.75
    drawn_from: tuple[float, float] | None = None  # by a wrapper, anew for each batch
    free_counts: bool = False
    training: bool
    schedules: dict[str, Schedule]
    mask_ratio: MaskRatio = MaskRatio(0.0, 1.0, inside=True)
    prediction_ratio: PredictionRatio = PredictionRatio(0.0, 1.0, inside=True)

    def number_set(self) -> None:
        """Called when a number that may move was set, or a ratio's default."""

    def set_ratios(self, mask_ratio: Ratio | None, prediction_ratio: Ratio | None) -> None:
        """Set those that are given, and refuse a prediction of more than is masked."""
        if mask_ratio is not None:
            self.mask_ratio = mask_ratio
        if prediction_ratio is not None:
            self.prediction_ratio = prediction_ratio
            if self.own_ratio:  # a codebase may set another default
                self.check_prediction(*self.ends("mask_ratio"))

    @property
    def own_ratio(self) -> bool:
        """Whether ``mask_ratio`` was given, or set since."""
        return "mask_ratio" in self.schedules

    def check_takes_ratio(self) -> None:
        """Raise ValueError where nothing would follow a ``mask_ratio``."""
        if not self.takes_ratio:
            raise ValueError(
                f"{type(self).__name__} takes no mask_ratio; leave it out, or, if it is a class of "
                "your own that follows self.mask_ratio, say takes_ratio = True in it"
            )

    def check_takes_prediction(self) -> None:
        """Raise ValueError where a ``prediction_ratio`` would not be followed."""
        if self.free_counts:
            raise ValueError(
                "prediction_ratio expected the same number of masked patches in every image, but "
                f"those of this {type(self).__name__} differ; leave prediction_ratio out, or use "
                "threshold=dict(type='quantile')"
            )
        if not self.takes_ratio:
            raise ValueError(
                f"prediction_ratio is a share beside mask_ratio, which this {type(self).__name__} "
                "does not take; leave it out, or, if it is a class of your own that follows "
                "self.mask_ratio, say takes_ratio = True in it"
            )

    def check_prediction(self, *ratios: float) -> None:
        """Raise ValueError where more would be predicted than masked: at the start, at the end, or
        between, where both are schedules that count in the same unit.

        Args:
            ratios: masked at the start and at the end.
        """
        pairs = list(zip(ratios, self.ends("prediction_ratio"), strict=False))
        masked, predicted = (self.schedules.get(n) for n in ("mask_ratio", "prediction_ratio"))
        if masked is not None and predicted is not None and masked.by == predicted.by:
            for one in (masked, predicted):
                for turn in (one.begin, one.until or one.begin):
                    pairs.append((masked(turn, turn, turn), predicted(turn, turn, turn)))
        for share, part in pairs:
            if part > share:
                raise ValueError(
                    f"prediction_ratio={part:g} is a part of what is masked, but mask_ratio="
                    f"{share:g}; lower prediction_ratio, or raise mask_ratio"
                )

    def ends(self, ratio: str) -> tuple[float, ...]:
        """First and last value of ``mask_ratio`` or ``prediction_ratio``, or the least and largest
        where a wrapper draws it; () if it has none.
        """
        if (schedule := self.schedules.get(ratio)) is not None:
            return schedule.start, schedule.end
        if ratio == "mask_ratio" and self.drawn_from is not None:
            return self.drawn_from
        now = getattr(self, ratio)
        return () if now is None else (now, now)

    def count_predicted(self, num_patches: int) -> int | None:
        """Predicted patches of each image now; None without a ``prediction_ratio``."""
        if self.prediction_ratio is None:
            return None
        count = count_masked(num_patches, self.prediction_ratio)
        if count > (most := count_masked(num_patches, self.mask_ratio)):
            raise ValueError(
                f"prediction_ratio={self.prediction_ratio:g} predicts {count} patches of each "
                f"image, but mask_ratio={self.mask_ratio:g} masks {most}; lower prediction_ratio, "
                "or raise mask_ratio"
            )
        return count

    @property
    def chosen_ratio(self) -> Any:
        """Share of the patches that a strategy chooses whose choice is what is predicted."""
        return self.mask_ratio if self.prediction_ratio is None else self.prediction_ratio

    def leave_out(self, chosen: PatchMask, generator: Generator | None) -> PatchMask:
        """The mask of which ``chosen``, all masked patches there, are predicted.

        As many of the others as ``mask_ratio`` says are left out: drawn uniformly, in ``eval()``
        in a way that follows from ``chosen``. ``chosen`` itself without a ``prediction_ratio``.
        """
        if self.prediction_ratio is None:
            return chosen
        num_masked = count_masked(chosen.num_patches, self.mask_ratio)
        return leave_out(chosen, num_masked, generator, not self.training)

    def check_counts(self, num_patches: int, *ratios: float) -> None:
        """Raise ValueError where a ratio, masked at the start or at the end, leaves no patch
        visible or masks none, or more is predicted than masked.
        """
        for ratio in (*ratios, *self.ends("prediction_ratio")):
            count_visible(num_patches, ratio)
        self.check_prediction(*ratios)


def predict_part(
    strategy: RatioMixin, args: tuple, kwargs: dict[str, Any], patch_mask: PatchMask
) -> PatchMask | None:
    """Of a strategy that does not choose what is predicted, a uniform part of the masked."""
    slots = patch_mask.slots  # of tubes, which are counted as their places are
    count = strategy.count_predicted(patch_mask.num_patches // slots)
    if count is None or slots * count == patch_mask.num_predicted:
        return None
    if patch_mask.num_predicted is not None:
        raise ValueError(
            f"{type(strategy).__name__} has prediction_ratio={strategy.prediction_ratio:g}, which "
            f"predicts {slots * count} patches of each image, but its mask predicts "
            f"{patch_mask.num_predicted}; let a strategy within it have the same ratios"
        )
    generator = kwargs.get("generator", args[1] if len(args) > 1 else None)
    return predict_some(patch_mask, count, generator, not strategy.training)
