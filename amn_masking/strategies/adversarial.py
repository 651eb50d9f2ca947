"""Adversarial masking: a small network learns which patches are hard to reconstruct."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from amn_masking.estimators import ESTIMATORS, ScoreFunction
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.network import (
    MaskingNetwork,
    logit_entropy,
    pool_scores,
    standardise_logits,
    to_logits,
)
from amn_masking.rewards import REWARDS, reward_scale
from amn_masking.schedules import as_schedule
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.thresholds import THRESHOLDS, Difficulty
from amn_masking.thresholds.selection import check_mask_ratio

T = TypeVar("T")


class AdversarialMasking(MaskingStrategy):
    """A mask that a small network learns while the autoencoder trains.

    The network scores every patch; a threshold of each image's own turns the scores into a hard
    0/1 mask; an estimator gives that mask a gradient, reversed, so that the step that lets the
    autoencoder descend lets the network ascend.

    In ``eval()`` the mask follows the scores without exploration noise; in ``train()`` the noise
    makes it a sample, so that no patch is masked for certain.

    Args:
        mask_ratio: share of the patches to mask, in (0, 1), for thresholds that hold one. In
            mmpretrain it defaults to the method's own.
        patch_size: side of a patch in pixels, or (height, width). In mmpretrain it defaults to
            the method's own.
        network: arguments of :class:`MaskingNetwork`.
        threshold: ``dict(type='quantile' | 'mean' | 'tracking' | 'difficulty', ...)``.
        estimator: ``dict(type='straight_through' | 'gumbel' | 'score_function' | 'ranking', ...)``.
        strength: of the reversed gradient, in [-1, 1]: +1 adversarial (masks what is hard), 0
            frozen, -1 cooperative (masks what is easy). A number, or a schedule such as
            ``dict(type='linear', start=-1, end=1)`` over the course of training; see
            :class:`~amn_masking.schedules.Schedule` for iterations and epochs.
        random_share: share in [0, 1] of the masked patches to draw uniformly; a number or a
            schedule.
        standardise: whether the logits are standardised per image, so that the network chooses an
            order and not a scale. The specification has none: False, with
            ``threshold=dict(type='mean')``, is its loop to the letter.
        temperature: > 0, of the standardised logits; larger samples closer to uniform.
        reward: ``'error'``, or ``'variance_normalised'``: each patch's error over the variance of
            its pixels plus the image's mean of it, so that noise, which nobody can reconstruct,
            pays no more than what is merely unknown. For targets in pixels; an error of targets
            that are normalised patch by patch (MAE's ``norm_pix``) is relative already.
        entropy_weight: >= 0, pulls the network towards patches that are liked evenly, whatever the
            strength: minus this times the mean of H(softmax(z)) / log L joins the objective. With
            standardised logits their spread is fixed and it has little left to do.
        gate: whether the masking network also gets the reversed reconstruction gradient through
            the visible tokens.
        loss: arguments of :class:`CombinedAdversarialLoss`, for codebases whose own loss stays as
            it is.

    Raises:
        ValueError: an unknown threshold or estimator, or a value out of range.
        TypeError: an argument that the named threshold, estimator, network or loss does not take.
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        patch_size: int | tuple[int, int] = 16,
        network: Mapping[str, Any] | None = None,
        threshold: Mapping[str, Any] | None = None,
        estimator: Mapping[str, Any] | None = None,
        strength: float | Mapping[str, Any] = 1.0,
        random_share: float | Mapping[str, Any] = 0.0,
        standardise: bool = True,
        temperature: float = 1.0,
        reward: str = "error",
        entropy_weight: float = 0.0,
        gate: bool = False,
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(patch_size)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if reward not in REWARDS:
            raise ValueError(f"unknown reward {reward!r}; expected one of {sorted(REWARDS)}")
        if not 0 <= entropy_weight < math.inf:
            raise ValueError(
                f"entropy_weight must be finite and cannot be negative, got {entropy_weight}"
            )
        self.mask_ratio = check_mask_ratio(mask_ratio)
        self.network = build(network, {"MaskingNetwork": MaskingNetwork}, "network")
        self.threshold = build(threshold, THRESHOLDS, "threshold", mask_ratio=mask_ratio)
        self.free_counts = self.threshold.free_counts
        self.estimator = build(estimator, ESTIMATORS, "estimator")
        self.loss = build(loss, {"CombinedAdversarialLoss": CombinedAdversarialLoss}, "loss")
        self.strength_schedule = as_schedule(strength, "strength", -1.0, 1.0)
        self.random_share_schedule = as_schedule(random_share, "random_share", 0.0, 1.0)
        if (
            isinstance(self.estimator, ScoreFunction)
            and self.free_counts
            and (self.random_share_schedule.start or self.random_share_schedule.end)
        ):
            raise ValueError(
                "estimator 'score_function' with a free count expected random_share=0, because the "
                f"log-probability of a mask is only known then, got {random_share}; use "
                "threshold=dict(type='quantile') or another estimator"
            )
        schedule = self.random_share_schedule
        if isinstance(self.threshold, Difficulty) and not min(schedule.start, schedule.end) > 0:
            raise ValueError(
                "threshold 'difficulty' measures the masks beside patches drawn at random and "
                f"expected random_share > 0 all the time, such as 0.25, got {random_share}"
            )
        if gate and not self.estimator.differentiable:
            raise ValueError(
                f"gate=True lets the gradient through the surrogate mask of visible tokens, but "
                f"estimator {type(self.estimator).__name__} has none there; use 'straight_through' "
                "or 'gumbel', or leave the gate out"
            )
        self.standardise = standardise
        self.temperature = temperature
        self.reward = reward
        self.entropy_weight = entropy_weight
        self.gate = gate
        self.set_progress(0.0, 0, 0)

    def set_progress(
        self, progress: float, iteration: float | None = None, epoch: float | None = None
    ) -> None:
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is the share of training done, in [0, 1], got {progress}")
        self.strength = self.strength_schedule(progress, iteration, epoch)
        self.random_share = self.random_share_schedule(progress, iteration, epoch)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        """Make the mask, outside autocast and, from the score map on, in float32.

        Args:
            images: ``(B, C, H, W)``, normalised as the encoder sees them.
            generator: source of the exploration noise, the random share and the tie-breaks, on
                the images' device; torch's global one if not given.

        Raises:
            ValueError: images that do not split into patches, another channel count, or scores
                that are not finite.
        """
        grid = self.grid(images)
        with torch.autocast(images.device.type, enabled=False):
            weight = next(self.network.parameters())
            score_map = self.network(images.to(weight.dtype)).float()
            patch_scores = pool_scores(score_map, grid)
            logits = to_logits(patch_scores)
            check_finite(logits)
            if self.standardise:
                logits = standardise_logits(logits, self.temperature)
            entropy = logit_entropy(logits) if self.entropy_weight else None
            logits = reverse_gradient(logits, self.strength)
            keys = logits.detach()
            if self.training:
                keys = self.estimator.keys(logits, self.free_counts, generator)
            selection = self.threshold(
                keys, torch.sigmoid(logits), grid, self.random_share, generator
            )
            patch_mask = selection.patch_mask
            patch_mask.surrogate = self.estimator.surrogate(logits, keys, selection)
        patch_mask.logits = logits
        patch_mask.patch_scores = patch_scores.detach()
        patch_mask.score_map = score_map.detach()
        patch_mask.threshold = torch.sigmoid(selection.tau.detach()).squeeze(1)
        patch_mask.random = selection.random
        if self.reward == "variance_normalised":
            patch_mask.reward_scale = reward_scale(images, grid)
        patch_mask.entropy = entropy
        patch_mask.objective = self.objective
        patch_mask.gate = self.gate
        return patch_mask

    def objective(self, error: Tensor, patch_mask: PatchMask) -> Tensor:
        """The estimator's objective of the reward, less the entropy term; 0 in value.

        In a training step the threshold hears of the error.
        """
        if self.training and torch.is_grad_enabled():
            self.threshold.observe(error, patch_mask)
        scale = patch_mask.reward_scale
        reward = error if scale is None else error.detach() / scale
        objective = self.estimator.objective(reward, patch_mask)
        if (entropy := patch_mask.entropy) is not None:
            objective = objective - self.entropy_weight * (entropy - entropy.detach()).mean()
        return objective

    def extra_repr(self) -> str:
        return f"strength={self.strength_schedule}, {super().extra_repr()}"


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """``x`` in value, bit for bit; its gradient is multiplied by ``-strength``.

    Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation" (arXiv:1409.7495).
    """
    return x.detach() - strength * (x - x.detach())


def check_finite(logits: Tensor) -> None:
    """Refuse scores that are NaN or infinite: NaN sorts last and would always be masked.

    On CUDA, and in compiled code, the check is an assertion on the device, which ends the program
    there: reading the answer back would make every step wait.

    Raises:
        ValueError: elsewhere.
    """
    message = (
        "the masking network's scores are not finite. Expected scores in (0, 1); the input images "
        "or the network's weights hold NaN or infinity. Check the images, lower the learning rate "
        "of 'masking' (paramwise_cfg) or clip gradients"
    )
    finite = torch.isfinite(logits).all()
    if logits.device.type == "cuda" or torch.compiler.is_compiling():
        torch._assert_async(finite, message)
    elif not bool(finite):
        raise ValueError(message)


def build(
    config: Mapping[str, Any] | None, known: Mapping[str, type[T]], role: str, **defaults: Any
) -> T:
    """The object that ``config`` describes.

    Args:
        config: ``type`` and arguments; None for the first of the known, as it is. The type may be
            left out where only one is known.
        known: classes by name.
        role: what it is, for messages.
        defaults: arguments that are used where the class takes them and the config is silent.

    Raises:
        ValueError: no or an unknown type.
        TypeError: not a dict, or an argument that the class does not take.
    """
    first = next(iter(known))
    if config is None:
        config = {"type": first}
    if not isinstance(config, Mapping):
        raise TypeError(
            f"{role} expected a dict such as {role}=dict(type={first!r}, ...), got {config!r}"
        )
    config = dict(config)
    config.pop("_scope_", None)  # mmengine marks dicts that a base config brought in
    name = config.pop("type", first if len(known) == 1 else None)
    cls = known.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(
            f"unknown {role} type {name!r}; expected {role}=dict(type=...) with one of "
            f"{sorted(known)}"
        )
    parameters = inspect.signature(cls).parameters
    unknown = sorted(set(config) - set(parameters))
    if unknown:
        raise TypeError(
            f"{role} {name!r} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(parameters) or 'no arguments'}"
        )
    for key, value in defaults.items():
        if key in parameters:
            config.setdefault(key, value)
    return cls(**config)
