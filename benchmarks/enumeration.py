"""Exact gradients of an expected reward, by going through every mask. Slow, obvious, float64."""

from __future__ import annotations

from itertools import combinations, permutations, product

import torch
from torch import Tensor

from amn_masking.estimators import Estimator
from amn_masking.learned import LearnedMask
from amn_masking.thresholds import Candidates, Threshold


def fixed_masks(length: int, masked: int) -> Tensor:
    """``(C(length, masked), length)`` every mask of that count."""
    masks = torch.zeros(0, length, dtype=torch.float64)
    for chosen in combinations(range(length), masked):
        mask = torch.zeros(1, length, dtype=torch.float64)
        mask[0, list(chosen)] = 1
        masks = torch.cat([masks, mask])
    return masks


class QuadraticReward:
    """Per-patch error l_i(m) = a_i + sum_j Q_ij m_j: how hard a patch is depends on the others.

    The reward of a mask is the mean error of its masked patches.

    Args:
        length: patches.
        seed: of the coefficients, standard normal, Q's diagonal 0.
        interaction: factor on Q; 0 for errors that do not depend on the rest of the mask.
    """

    def __init__(self, length: int, seed: int, interaction: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        options = dict(generator=generator, dtype=torch.float64)
        self.single = torch.randn(length, **options)
        self.pairs = interaction * torch.randn(length, length, **options).fill_diagonal_(0)
        self.logits = torch.randn(length, **options)

    def errors(self, masks: Tensor) -> Tensor:
        """``(B, L)`` per-patch errors under ``(B, L)`` masks."""
        return self.single + masks.double() @ self.pairs.T

    def __call__(self, masks: Tensor) -> Tensor:
        """``(B,)`` rewards."""
        return (self.errors(masks) * masks).sum(1) / masks.sum(1)


def plackett_luce_gradient(reward: QuadraticReward, masked: int) -> Tensor:
    """``(L,)`` gradient of the expected reward of ``masked`` draws without replacement."""
    logits = reward.logits.clone().requires_grad_()
    length = len(logits)
    expected = torch.zeros((), dtype=torch.float64)
    for mask, value in zip(
        fixed_masks(length, masked), reward(fixed_masks(length, masked)), strict=True
    ):
        chosen = mask.nonzero().flatten().tolist()
        orders = torch.tensor(list(permutations(chosen)))
        left = torch.ones(len(orders), length, dtype=torch.bool)
        log_prob = torch.zeros(len(orders), dtype=torch.float64)
        for draw in range(masked):
            patch = orders[:, draw]
            open_logits = logits.expand(len(orders), -1).masked_fill(~left, float("-inf"))
            log_prob = log_prob + logits[patch] - open_logits.logsumexp(1)
            left[torch.arange(len(orders)), patch] = False
        expected = expected + log_prob.exp().sum() * value
    return torch.autograd.grad(expected, logits)[0]


def bernoulli_gradient(reward: QuadraticReward, scale: float) -> Tensor:
    """``(L,)`` gradient of the expected reward under the ``mean`` threshold with logistic noise.

    Patch i is masked with probability sigmoid(z_i - tau), tau the logit of scale * mean(scores),
    which itself moves with z. Masks that hide nothing or everything are left out: choose a length
    for which they hardly occur.
    """
    logits = reward.logits.clone().requires_grad_()
    tau = torch.logit(scale * logits.sigmoid().mean())
    masks = torch.tensor(list(product((0.0, 1.0), repeat=len(logits))), dtype=torch.float64)
    masks = masks[(masks.sum(1) > 0) & (masks.sum(1) < len(logits))]
    masked = (logits - tau).sigmoid()
    probability = torch.where(masks.bool(), masked, 1 - masked).prod(1)
    return torch.autograd.grad((probability * reward(masks)).sum(), logits)[0]


def sampled_gradients(
    estimator: Estimator,
    threshold: Threshold,
    mask_ratio: float | None,
    reward: QuadraticReward,
    batch: int,
    generator: torch.Generator,
) -> Tensor:
    """``(batch, L)`` one estimate an image, by the package's own path from logits to objective."""
    length = len(reward.logits)
    logits = reward.logits.expand(batch, -1).clone().requires_grad_()
    priorities = estimator.priorities(logits, threshold.free_counts, generator)
    selection = threshold(
        Candidates(priorities, (1, length), logits.sigmoid(), mask_ratio, generator=generator)
    )
    scores = logits.detach().sigmoid()
    surrogate, chances = estimator.relax(logits, priorities, selection)
    learned = LearnedMask(
        chosen=selection.patch_mask,
        logits=logits,
        surrogate=surrogate,
        patch_scores=scores,
        score_map=scores[:, None, None],
        threshold=selection.tau.sigmoid().squeeze(1),
        estimate=estimator.objective,
        chances=chances,
    )
    objective = learned.objective(reward.errors(selection.patch_mask.mask))
    return torch.autograd.grad(objective, logits)[0] * batch
