"""What :class:`AdversarialMasking` refuses, and what it warns of."""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn

from amn_masking.checks import is_compiling
from amn_masking.counts import count_masked, count_range
from amn_masking.estimators import Estimator, ScoreFunction
from amn_masking.mask import PatchMask
from amn_masking.rewards import REWARDS
from amn_masking.strategies.random_share import is_harsh
from amn_masking.strategies.ratios import RatioMixin
from amn_masking.thresholds import Mean, Threshold
from amn_masking.watch import TrainingWatch


class AdversarialChecks(RatioMixin):
    """The part of :class:`~amn_masking.strategies.AdversarialMasking` that checks its settings."""

    threshold: Threshold
    estimator: Estimator
    network: nn.Module
    watch: TrainingWatch
    reward: str
    standardise: bool
    entropy_weight: float
    gate: bool

    def check(self) -> None:
        """Raise ValueError for settings out of range, or that exclude each other."""
        if self.reward not in REWARDS:
            raise ValueError(f"unknown reward {self.reward!r}; expected one of {sorted(REWARDS)}")
        if not 0 <= self.entropy_weight < math.inf:
            raise ValueError(
                f"entropy_weight must be finite and cannot be negative, got {self.entropy_weight}"
            )
        temperature = self.schedules["temperature"]
        if not self.standardise and not temperature.start == temperature.end == 1:
            raise ValueError(
                "temperature is that of standardised logits and has no part in "
                f"standardise=False, got {temperature.start}; leave it out"
            )
        self.threshold.check(self.schedules)
        share = self.schedules["random_share"]
        drawn = max(share.start, share.end)
        if isinstance(self.estimator, ScoreFunction) and self.free_counts and drawn:
            raise ValueError(
                "estimator 'score_function' with a free count expected random_share=0, because the "
                f"log-probability of a mask is only known then, got {drawn}; use "
                "threshold=dict(type='quantile') or another estimator"
            )
        of_mean = isinstance(self.estimator, ScoreFunction) and isinstance(self.threshold, Mean)
        if of_mean and not self.standardise:
            raise ValueError(
                "estimator 'score_function' with threshold 'mean' expected standardise=True, "
                "because the mean error of the masked patches also changes with how many are "
                "masked, and all scores could drift to 0 (docs/estimators.md); use "
                "threshold=dict(type='quantile') or another estimator"
            )
        if self.gate and not self.estimator.differentiable:
            raise ValueError(
                f"gate=True lets the gradient through the surrogate mask of visible tokens, but "
                f"estimator {type(self.estimator).__name__} has none there; use 'inclusion', "
                "'straight_through' or 'gumbel', or leave the gate out"
            )

    def check_takes_ratio(self) -> None:
        if not self.takes_ratio:
            raise ValueError(
                f"threshold {type(self.threshold).__name__} chooses the number of masked patches "
                "by itself and takes no mask_ratio; leave mask_ratio out, set the threshold's own "
                "arguments, or use threshold=dict(type='quantile') or 'tracking' (a class of your "
                "own that follows candidates.mask_ratio says takes_ratio = True)"
            )

    def check_degenerate(self, chosen: PatchMask) -> None:
        """Raise ValueError for masks from which nothing can ever be learned: one masked patch in
        every image, whose own error is the baseline, or patches that are all drawn at random.
        """
        share, strength = self.schedules["random_share"], self.schedules["strength"]
        if share.start == share.end == 1 and (strength.start or strength.end):
            raise ValueError(
                "random_share=1 draws every masked patch at random, and the network would learn "
                "nothing; lower it, move it by a schedule, or say strength=0"
            )
        if self.free_counts:
            most = count_range(chosen.num_patches, self.threshold.ratio_range)[1]
            self.check_enough(most, chosen.num_patches)

    def check_counts(self, num_patches: int, *ratios: float) -> None:
        super().check_counts(num_patches, *ratios)
        if self.training and torch.is_grad_enabled() and not self.free_counts:
            for ratio in self.ends("prediction_ratio") or ratios:
                self.check_enough(count_masked(num_patches, ratio), num_patches)

    def check_enough(self, count: int, num_patches: int) -> None:
        """Raise ValueError if nothing can be learned from images of which so many are masked."""
        if count < self.estimator.fewest_masked:
            raise ValueError(
                f"{count} of each image's {num_patches} patches are predicted at most, but "
                f"estimator {type(self.estimator).__name__} compares the patches of one image and "
                f"its gradient would be 0 below {self.estimator.fewest_masked}; raise "
                f"{'mask_ratio' if self.prediction_ratio is None else 'prediction_ratio'} "
                "(or the threshold's ratio_range), take larger images or smaller patches, or "
                "estimator=dict(type='score_function')"
            )

    def warn_of_harm(self) -> None:
        """Say so once where the settings are those that made features worse."""
        if self.watch.masks or is_compiling() or not is_harsh(self):
            return
        share = self.schedules["random_share"]
        if share.start == share.end == 0:
            warnings.warn(
                f"at a ratio of {self.chosen_ratio:g} an adversary hides all that is hard at once: "
                "features were worse than with random masks on photographs and digits, and no "
                "better on shapes (docs/choosing.md). Draw a part of the mask at random, "
                "random_share=dict(type='linear', start=1.0, end=0.5), which harms photographs "
                "least and is the default; for objects over busy texture lower the ratio, to 0.375",
                stacklevel=2,
            )
