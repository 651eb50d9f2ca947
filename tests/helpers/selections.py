"""What thresholds and estimators are given and make of it, without a network."""

from __future__ import annotations

from dataclasses import replace

import torch

from amn_masking import PatchMask
from amn_masking.learned import LearnedMask
from amn_masking.thresholds import Candidates, Mean, Quantile


def choose(threshold, priorities, scores, grid, mask_ratio=None, **more):
    """What a threshold selects; ``more`` are attributes of :class:`Candidates`."""
    return threshold(Candidates(priorities, grid, scores, mask_ratio, **more))


def masks_of(threshold, logits, grid, mask_ratio=None, **more):
    """``(B, L)`` masks of logits without noise."""
    return choose(threshold, logits, logits.sigmoid(), grid, mask_ratio, **more).patch_mask.mask


def learn(patch_mask, logits=None, surrogate=None, estimate=None, **more):
    """The same mask as a learning strategy would give it; ``more`` of :class:`LearnedMask`."""
    mask = patch_mask.mask
    logits = torch.zeros_like(mask) if logits is None else logits
    scores = logits.detach().sigmoid()
    learned = LearnedMask(
        chosen=patch_mask,
        logits=logits,
        surrogate=mask if surrogate is None else surrogate,
        patch_scores=scores,
        score_map=scores.reshape(-1, 1, *patch_mask.grid),
        threshold=torch.full_like(mask[:, 0], 0.5),
        estimate=estimate or (lambda reward, learned: 0 * learned.logits.sum()),
        **more,
    )
    return replace(patch_mask, learned=learned)


def selected(estimator, free=False, batch=3, length=6, seed=0, **more):
    """Logits with a gradient, priorities, selection and the PatchMask of a learning strategy."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, generator=generator, dtype=torch.float64).requires_grad_()
    threshold, ratio = (Mean(), None) if free else (Quantile(), 0.5)
    priorities = estimator.priorities(logits, free, generator)
    selection = choose(
        threshold,
        priorities,
        logits.sigmoid(),
        (2, length // 2),
        ratio,
        generator=generator,
        **more,
    )
    surrogate, chances = estimator.relax(logits, priorities, selection)
    patch_mask: PatchMask = learn(
        selection.patch_mask, logits, surrogate, estimator.objective, chances=chances
    )
    return logits, priorities, selection, patch_mask
