"""Adversarial masking: a small network learns which patches are hard to reconstruct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from amn_masking.checks import check_finite
from amn_masking.config import build
from amn_masking.estimators import ESTIMATORS, Estimator
from amn_masking.learned import LearnedMask, Once
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.network import (
    MaskingNetwork,
    logit_entropy,
    pool_scores,
    standardise_logits,
    to_logits,
)
from amn_masking.patches import fill_invalid, image_means
from amn_masking.rewards import Reward, patch_variance, reward_scale
from amn_masking.schedules import Fixed, Scheduled
from amn_masking.strategies.adversarial_checks import AdversarialChecks
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.strategies.random_share import RandomShare, settle
from amn_masking.strategies.ratios import Ratio
from amn_masking.thresholds import THRESHOLDS, Candidates, Threshold

NOT_FINITE = (
    "the masking network's scores are not finite: the images or its weights hold NaN or infinity. "
    "Where NaN means no data: masking(images, valid=...), in mmpretrain the samples' 'valid'. "
    "Else lower the learning rate of 'masking' or clip gradients"
)


class AdversarialMasking(AdversarialChecks, MaskingStrategy):
    """A mask that a small network learns while the autoencoder trains.

    The network scores every patch; a threshold of each image's own turns the scores into a hard
    0/1 mask; an estimator gives that mask a gradient, reversed, so that the step that lets the
    autoencoder descend lets the network ascend.

    In ``eval()`` the mask follows the scores alone: no exploration noise, no patches drawn at
    random, equal scores ordered alike in every call. In ``train()`` the noise makes it a sample,
    so that no patch is masked for certain.

    Each part is an object or a dict that describes one; ``type`` in a dict may also be a class of
    one's own.

    Args:
        mask_ratio, prediction_ratio: as in :class:`MaskingStrategy`; refused where the threshold
            takes none. The network chooses what is predicted.
        patch_size: side of a patch in pixels, or a tuple of one to three, as in
            :class:`MaskingStrategy`. In mmpretrain it defaults to the method's own.
        network: any module from images ``(B, C, H, W)`` to a score map ``(B, 1, H', W')`` in
            (0, 1) that the grid of patches divides; or arguments of :class:`MaskingNetwork`, of
            which ``dimensions`` follows from ``patch_size``, and ``downsample`` is by default the
            largest that leaves a patch two scores a side, 8 for patches of 16 pixels. The
            specification's network is ``dict(downsample=1)``.
        threshold: a :class:`~amn_masking.thresholds.Threshold`, or
            ``dict(type='quantile' | 'constant' | 'mean' | 'tracking' | 'difficulty', ...)``.
        estimator: an :class:`~amn_masking.estimators.Estimator`, or
            ``dict(type='straight_through' | 'gumbel' | 'inclusion' | 'score_function' | 'ranking',
            ...)``, by default ``inclusion``.
        strength: of the reversed gradient, in [-1, 1]: +1 adversarial (masks what is hard), 0
            frozen, -1 cooperative (masks what is easy). A number, or a schedule such as
            ``dict(type='linear', start=-1, end=1)`` over the course of training; see
            :class:`~amn_masking.schedules.Schedule` for iterations and epochs.
        random_share: share in [0, 1] of the masked patches to draw uniformly; a number or a
            schedule. By default 0, but from 1 to 0.5 over the training where the strength stays
            adversarial and the ratio at MAE's, from 0.7 on: what harms least on photographs
            (docs/choosing.md).
        standardise: whether the logits are standardised per image, so that the network chooses an
            order and not a scale. The specification has none: False, with
            ``threshold=dict(type='mean')`` and ``network=dict(downsample=1)``, is its loop; it
            names no estimator and no noise (docs/specification.md).
        temperature: > 0, of the standardised logits; larger samples closer to uniform. A number or
            a schedule. Without ``standardise`` it is refused.
        reward: ``'error'``, or ``'variance_normalised'``: each patch's error over the variance of
            its pixels plus the image's mean of it, so that noise, which nobody can reconstruct,
            is rewarded no more than what is merely unknown. For targets in pixels: refused where a
            method's are normalised patch by patch (MAE's ``norm_pix``), whose errors are relative
            already.
        entropy_weight: >= 0, pulls the network towards patches of equal chance, whatever the
            strength: minus this times the mean of H(softmax(z)) / log L joins the objective. With
            standardised logits their spread is fixed and it has little left to do.
        gate: whether the masking network also gets the reversed reconstruction gradient through
            the visible tokens.
        loss: a :class:`CombinedAdversarialLoss` or its arguments, for codebases whose own loss
            stays as it is.

    Attributes:
        strength, random_share, temperature, mask_ratio: the numbers of now. Each may be set to a
            number or a schedule at any time; the other settings are fixed.

    Raises:
        ValueError: an unknown part, a value out of range, or settings that exclude each other; in
            ``forward``, a single masked patch per image where the estimator needs two.
        TypeError: an argument that the named part does not take.

    Example:
        >>> import torch
        >>> masking = AdversarialMasking(mask_ratio=0.25, patch_size=16)
        >>> patch_mask = masking(torch.rand(2, 3, 64, 64))
        >>> patch_mask.mask.sum(1)
        tensor([4., 4.])
        >>> error = torch.rand(2, 16, requires_grad=True)  # an autoencoder's error of each patch
        >>> masking.total_loss(error.mean(), error, patch_mask).backward()  # reaches both networks
    """

    unsaid: tuple[object, ...] | None  # settings of a loss that the user said nothing about
    strength: Scheduled = Scheduled(-1.0, 1.0)
    random_share: Scheduled = RandomShare(0.0, 1.0)
    temperature: Scheduled = Scheduled(0.0, math.inf, inside=True)
    standardise, reward, entropy_weight, gate = Fixed(), Fixed(), Fixed(), Fixed()

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        network: Mapping[str, Any] | nn.Module | None = None,
        threshold: Mapping[str, Any] | Threshold | None = None,
        estimator: Mapping[str, Any] | Estimator | None = None,
        strength: Ratio = 1.0,
        random_share: Ratio | None = None,
        standardise: bool = True,
        temperature: Ratio = 1.0,
        reward: Reward = "error",
        entropy_weight: float = 0.0,
        gate: bool = False,
        loss: Mapping[str, Any] | CombinedAdversarialLoss | None = None,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__(patch_size, None)
        networks = {"MaskingNetwork": MaskingNetwork}
        self.network: nn.Module = build(
            network,
            nn.Module,
            networks,
            "network",
            downsample=coarsest(self.patch_size),
            dimensions=len(self.patch_size),
        )
        self.threshold = build(threshold, Threshold, THRESHOLDS, "threshold")
        self.estimator = build(estimator, Estimator, ESTIMATORS, "estimator")  # type: ignore[type-abstract]
        losses = {"CombinedAdversarialLoss": CombinedAdversarialLoss}
        self.give_default_loss(build(loss, CombinedAdversarialLoss, losses, "loss"))
        if loss is not None:
            self.unsaid = None
        self.set_ratios(mask_ratio, prediction_ratio)
        self.strength = strength
        if random_share is not None:
            self.random_share = random_share
        self.temperature = temperature
        self.standardise = standardise
        self.reward = reward
        self.entropy_weight = entropy_weight
        self.gate = gate
        self.check()

    def give_default_loss(self, loss: CombinedAdversarialLoss) -> None:
        """What a host does that has a loss of its own for a strategy that was given none."""
        self.loss = loss
        self.unsaid = loss.settings()

    @property
    def own_loss(self) -> bool:  # type: ignore[override]
        """Whether the loss was given, set or changed by the user."""
        return self.loss is not None and self.loss.settings() != self.unsaid

    @property
    def default_ratio(self) -> float:
        """The mask ratio until it is set: MAE's, or a codebase's own."""
        ratio: float = self.__dict__.get("_default_ratio", MaskingStrategy.default_ratio)
        return ratio

    @default_ratio.setter
    def default_ratio(self, ratio: float) -> None:
        self.__dict__["_default_ratio"] = ratio
        self.number_set()

    def number_set(self) -> None:
        settle(self)

    @property
    def free_counts(self) -> bool:  # type: ignore[override]
        """Whether images of one batch may mask different numbers of patches: the threshold's."""
        return self.threshold.free_counts

    @property
    def takes_ratio(self) -> bool:  # type: ignore[override]
        """Whether ``mask_ratio`` is followed: the threshold's."""
        return self.threshold.takes_ratio

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        """Outside autocast and, from the score map on, in float32; else as in the base class."""
        grid = self.grid(images)
        self.check()
        valid = self.valid_patches(valid, images)
        images = fill_invalid(images, valid, grid)
        with torch.autocast(images.device.type, enabled=False):
            score_map = self.score_map(images)
            patch_scores = pool_scores(score_map, grid)
            logits = to_logits(patch_scores)
            check_finite(logits, NOT_FINITE)
            if self.standardise:
                logits = standardise_logits(logits, self.temperature, valid)
            entropy = logit_entropy(logits, valid) if self.entropy_weight else None
            logits = reverse_gradient(logits, self.strength)
            priorities = logits.detach()
            if self.training:
                priorities = self.estimator.priorities(logits, self.free_counts, generator)
            selection = self.threshold(
                Candidates(
                    priorities,
                    grid,
                    torch.sigmoid(logits),
                    self.chosen_ratio,
                    self.random_share if self.training else 0.0,
                    valid,
                    not self.training,
                    generator,
                )
            )
            surrogate, chances = self.estimator.relax(logits, priorities, selection)
        chosen = selection.patch_mask
        trains = self.training and torch.is_grad_enabled()
        if trains:
            self.check_degenerate(chosen)
            self.warn_of_harm()
            self.mask_made()
            if self.random_share < 1:
                self.watch.taught(self.network, logits, self.strength)
        scale, variance = None, None
        if self.reward == "variance_normalised":
            scale = reward_scale(images, grid, valid)
        if trains and self.estimator.compares_images:
            variance = image_means(patch_variance(images, grid, valid), valid)
        learned = LearnedMask(
            chosen,
            logits,
            surrogate,
            patch_scores.detach(),
            score_map.detach(),
            torch.sigmoid(selection.tau.detach()).squeeze(1),
            self.estimator.objective,
            self.strength,
            chances,
            selection.drawn_at_random,
            scale,
            variance,
            None if entropy is None else -self.entropy_weight * entropy,
            self.gate,
            any(parameter.requires_grad for parameter in self.network.parameters()),
            Once(self.hear) if trains else None,
            self.loss if self.own_loss else None,
        )
        chosen = replace(chosen, grid=grid, valid=valid, learned=learned)
        return self.leave_out(chosen, generator)

    def train(self, mode: bool = True) -> AdversarialMasking:
        if mode:
            self.watch.turned_to_training()
        return super().train(mode)

    def score_map(self, images: Tensor) -> Tensor:
        """The network's ``(B, 1, H', W')`` scores of the images."""
        weight = next(self.network.parameters(), images)
        scores = self.network(images.to(weight.dtype))
        self.watch.scored(images, scores)
        return scores.float()

    def hear(self, error: Tensor, learned: LearnedMask) -> None:
        """Told of the error under a training mask, when its objective is made."""
        self.watch.heard()
        self.threshold.observe(error, learned.chosen, learned.drawn_at_random)

    def log_values(self) -> dict[str, float | Tensor]:
        return {"strength": self.strength, **self.threshold.log_values()}


def coarsest(patch_size: tuple[int, ...]) -> int | tuple[int, ...]:
    """The largest ``downsample`` that leaves a patch two scores a side: 8 for patches of 16 pixels.

    A divisor of both sides, at most half of the shorter one; 1 where there is none. Of three sides
    the first has its own, so that patches of few frames do not forbid to pool their pixels.
    """
    if len(patch_size) == 3:
        rows, depth = coarsest(patch_size[1:]), coarsest(patch_size[:1])
        return (depth, rows, rows)  # type: ignore[return-value]
    common = math.gcd(*patch_size)
    return max([d for d in range(1, min(patch_size) // 2 + 1) if common % d == 0], default=1)


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """``x`` in value, bit for bit; its gradient is multiplied by ``-strength``.

    Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation" (arXiv:1409.7495).
    """
    return x.detach() - strength * (x - x.detach())
