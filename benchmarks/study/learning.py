"""Masks that set themselves, as they were tried: rewards for what can still be learned, and a mask
ratio that follows the error under random masks. docs/results/learning.md has what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from mmengine.hooks import Hook
from mmpretrain.registry import MODELS
from torch import Generator, Tensor

from amn_masking.learned import LearnedMask
from amn_masking.mask import PatchMask
from amn_masking.network import pool_scores, to_logits
from amn_masking.patches import masked_mean
from amn_masking.strategies.adversarial import AdversarialMasking
from benchmarks.study import measures
from benchmarks.study.data import Images

SLOW = 0.99  # of averages: of about a hundred steps
LAG = 100  # steps


class RewardedMasking(AdversarialMasking):
    """An adversary whose reward is another than the error: of ``estimator='inclusion'``, paid after
    ``settle`` steps.
    """

    def __init__(
        self,
        mask_ratio: float | None = None,
        patch_size: int | tuple[int, ...] = 16,
        network: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        strength: float = 1.0,
        *,
        prediction_ratio: float | None = None,
        settle: int = 0,
    ) -> None:
        super().__init__(
            mask_ratio,
            patch_size,
            network,
            strength=strength,
            estimator=dict(type="inclusion"),
            random_share=0.0,
            loss=loss,
            prediction_ratio=prediction_ratio,
        )
        self.settle, self.rewards = settle, 0
        self.prepare()

    def prepare(self) -> None:
        """Make what the reward needs."""

    def pay(self, reward: Tensor, learned: LearnedMask) -> Tensor:
        """The estimator's objective of a ``(B, L)`` reward, 0 where nothing is masked."""
        return self.estimator.objective(reward * (self.rewards > self.settle), learned)

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        patch_mask = super().forward(images, generator, valid)
        if not self.training or not torch.is_grad_enabled():
            return patch_mask
        self.rewards += 1
        learned = replace(patch_mask.learned, estimate=self.rewarded(images, patch_mask))
        return replace(patch_mask, learned=learned)

    def rewarded(
        self, images: Tensor, patch_mask: PatchMask
    ) -> Callable[[Tensor, LearnedMask], Tensor]:
        """The estimator's objective, of another reward than the ``(B, L)`` error it is given."""
        raise NotImplementedError


@MODELS.register_module()
class ProgressMasking(RewardedMasking):
    """Pays for patches whose error has lately fallen: learning progress (Graves et al.,
    arXiv:1704.03003) in the form of Kim et al.'s gamma-Progress (arXiv:2007.07853), by critics of
    the masking network's size, without a pass of the autoencoder.

    One critic regresses the error of masked patches from the image; another is its running mean.
    The reward is what the mean expects less what the critic expects. At first the critics know no
    error, and where it is largest the critic rises fastest above its mean, which says the reverse
    of progress: ``settle`` until they do.
    """

    def prepare(self) -> None:
        self.fast = deepcopy(self.network)
        self.slow = deepcopy(self.network).requires_grad_(False)

    def rewarded(
        self, images: Tensor, patch_mask: PatchMask
    ) -> Callable[[Tensor, LearnedMask], Tensor]:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
                slow.lerp_(fast, 1 - SLOW)
        with torch.autocast(images.device.type, enabled=False):
            expected, before = (
                to_logits(pool_scores(critic(images.float()), patch_mask.grid))
                for critic in (self.fast, self.slow)
            )
        progress = (before - expected).detach()

        def estimate(error: Tensor, learned: LearnedMask) -> Tensor:
            mask = learned.chosen.mask
            regression = masked_mean((expected - error).square(), mask)
            return self.pay(progress * mask, learned) + regression - regression.detach()

        return estimate


@MODELS.register_module()
class RegretMasking(RewardedMasking):
    """Pays for the error less that of a trained reference under the same mask: regret (Dennis et
    al., PAIRED, arXiv:2012.02096), reducible loss (Mindermann et al., RHO-LOSS, arXiv:2206.07137).

    The reference is an autoencoder of the same size that was trained before, on the same images for
    as long with random masks at 0.5, and it is asked at every step: the most that cheaper
    references, which are worse and asked less often, could come near.
    """

    reference: list[Any]  # of one model; in a list it is not a part of this one

    def rewarded(
        self, images: Tensor, patch_mask: PatchMask
    ) -> Callable[[Tensor, LearnedMask], Tensor]:
        with torch.no_grad():
            known = self.reference[0].error_under(patch_mask.detach(), images, [])

        def estimate(error: Tensor, learned: LearnedMask) -> Tensor:
            return self.pay((error - known) * learned.chosen.mask, learned)

        return estimate


class CopiedMasking(RewardedMasking):
    """Compares the error with that of a copy of the autoencoder under the same mask, at every step;
    ``training.attach`` gives both.
    """

    autoencoder: list[Any]  # one model and its copy; in a list they are not parts of this one

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the copy and of the autoencoder, without their masks'."""
        own, copy = (
            [p for name, p in model.named_parameters() if not name.startswith("masking")]
            for model in self.autoencoder
        )
        return copy, own

    def rewarded(
        self, images: Tensor, patch_mask: PatchMask
    ) -> Callable[[Tensor, LearnedMask], Tensor]:
        with torch.no_grad():
            self.follow()
            known = self.autoencoder[1].error_under(patch_mask.detach(), images, [])

        def estimate(error: Tensor, learned: LearnedMask) -> Tensor:
            mask = learned.chosen.mask
            return self.pay(self.paid(error, known, mask) * mask, learned)

        return estimate

    def follow(self) -> None:
        """Let the copy follow the autoencoder, before a step."""
        raise NotImplementedError

    def paid(self, error: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        """The reward, of the ``(B, L)`` error and that of the copy; masked patches count."""
        raise NotImplementedError


@MODELS.register_module()
class SnapshotProgressMasking(CopiedMasking):
    """Learning progress without critics: what a snapshot's error is, less what the error is. The
    snapshot is between ``LAG`` and twice ``LAG`` steps old; before it is, nothing is paid.
    """

    def prepare(self) -> None:
        self.steps = 0
        self.next: list[Tensor] = []

    def follow(self) -> None:
        copy, own = self.weights()
        if self.steps % LAG == 0:
            torch._foreach_copy_(copy, self.next or own)
            self.next = [p.detach().clone() for p in own]
        self.steps += 1

    def paid(self, error: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        return (known - error) * (self.steps > LAG)


@MODELS.register_module()
class AveragedRegretMasking(CopiedMasking):
    """Regret against an averaged copy of the autoencoder, paid once it has been the better one of
    the two, in the mean of about a hundred steps.
    """

    def prepare(self) -> None:
        self.lead: Tensor | float = 0.0

    def follow(self) -> None:
        torch._foreach_lerp_(*self.weights(), 1 - SLOW)

    def paid(self, error: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        lead = masked_mean(error.detach(), mask) - masked_mean(known, mask)
        self.lead = SLOW * self.lead + (1 - SLOW) * lead
        return (error - known) * (self.lead > 0)


RULER_RATIO, RULER_IMAGES = 0.5, 64
ARMS = (0.25, 0.375, 0.5, 0.75)
SEGMENTS = 50  # of a training, each with one ratio
FORGET = 0.95  # weight of a segment beside the next
TREND = 0.8  # the same, of the mean that is taken off rewards


class Bandit:
    """Discounted UCB (Garivier, Moulines, "On Upper-Confidence Bound Policies for Switching Bandit
    Problems", ALT 2011): each arm's discounted mean reward, in standard deviations of the rewards,
    and a bonus for arms that were not played lately.
    """

    def __init__(self, arms: int) -> None:
        self.played: list[tuple[int, float]] = []
        self.arms = arms

    def choose(self) -> int:
        for arm in range(self.arms):
            if arm not in {played for played, _ in self.played}:
                return arm
        weights = [FORGET ** (len(self.played) - 1 - i) for i in range(len(self.played))]
        total = sum(weights)
        mean = sum(w * r for w, (_, r) in zip(weights, self.played, strict=True)) / total
        square = sum(w * (r - mean) ** 2 for w, (_, r) in zip(weights, self.played, strict=True))
        spread = math.sqrt(square / total) or 1.0

        def bound(arm: int) -> float:
            own = [(w, r) for w, (a, r) in zip(weights, self.played, strict=True) if a == arm]
            count = sum(w for w, _ in own)
            worth = sum(w * (r - mean) for w, r in own) / count / spread
            return worth + math.sqrt(math.log(total) / count)

        return max(range(self.arms), key=bound)

    def tell(self, arm: int, reward: float) -> None:
        self.played.append((arm, reward))


class RulerHook(Hook):
    """Moves the mask ratio by the ruler: the error under random masks at 0.5 on images that are not
    trained on. Each segment of the training has one ratio; its reward is the decrease of the
    ruler's logarithm over the FLOPs.

    Args:
        images: ``(N, C, S, S)`` that the ruler is measured on, always under the same masks.
        flops: of a step at each of ``ARMS``.
        steps: of the whole training.
        choice: ``'reward'``: of the bandit, told the reward; ``'less trend'``: told the reward less
            its running mean, because the ruler falls fastest at first, whatever the ratio;
            ``'drawn'``: uniformly, without a look at the ruler.
        seed: of what is drawn.

    Raises:
        ValueError: another ``choice``.
    """

    def __init__(
        self,
        images: Tensor,
        flops: Sequence[float],
        steps: int,
        choice: str = "reward",
        seed: int = 0,
    ) -> None:
        if choice not in ("reward", "less trend", "drawn"):
            raise ValueError(f"choice expects 'reward', 'less trend' or 'drawn', got {choice!r}")
        self.images, self.flops, self.choice = images, flops, choice
        self.generator = torch.Generator().manual_seed(seed)
        self.length = max(1, steps // SEGMENTS)
        self.bandit = Bandit(len(ARMS))
        self.ratios: list[float] = []
        self.arm: int | None = None
        self.before = math.nan
        self.trend: float | None = None

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        model = runner.model
        if runner.iter % self.length == 0:
            self.arm = self.next_arm(model)
            model.masking.mask_ratio = ARMS[self.arm]
        self.ratios.append(model.masking.mask_ratio)

    def next_arm(self, model: Any) -> int:
        """For the segment that begins."""
        if self.choice == "drawn":
            return int(torch.randint(len(ARMS), (), generator=self.generator))
        now = self.ruler(model)
        if self.arm is not None:
            reward = math.log(self.before / now) / self.flops[self.arm]
            self.trend = reward if self.trend is None else self.trend
            self.bandit.tell(self.arm, reward - self.trend * (self.choice == "less trend"))
            self.trend = TREND * self.trend + (1 - TREND) * reward
        self.before = now
        return self.bandit.choose()

    def after_train(self, runner: Any) -> None:
        late = self.ratios[len(self.ratios) // 2 :]
        most = max(ARMS, key=late.count)
        runner.model.ruled = {"late_ratio": most, "late_share": late.count(most) / len(late)}
        # What is measured of the masks afterwards is at the mean ratio.
        runner.model.masking.mask_ratio = sum(self.ratios) / len(self.ratios)

    @torch.no_grad()
    def ruler(self, model: Any) -> float:
        patch = model.masking.patch_size[0]
        masks = measures.reference_masks(self.images, patch, 0, None)[f"random_{RULER_RATIO}"]
        return float(masked_mean(model.error_under(masks, self.images, []), masks.predicted))


def held_out(images: Images, seed: int) -> tuple[Images, Tensor]:
    """The training images without the ruler's, and the ruler's, drawn by the seed."""
    order = torch.randperm(len(images.pixels), generator=torch.Generator().manual_seed(seed))
    ruled, kept = order[:RULER_IMAGES], order[RULER_IMAGES:].sort().values
    labels = images.labels[kept.numpy()]
    return (
        replace(images, pixels=images.pixels[kept], labels=labels, ink=None, noise=None),
        replace(images, pixels=images.pixels[ruled]).centre(),
    )
