"""What an estimator is given and makes of it, on random logits."""

from __future__ import annotations

import torch

from amn_masking.thresholds import Mean, Quantile


def selected(estimator, free=False, batch=3, length=6, seed=0):
    """Logits with a gradient, keys, selection and PatchMask."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, generator=generator, dtype=torch.float64).requires_grad_()
    threshold = Mean() if free else Quantile(0.5)
    keys = estimator.keys(logits, free, generator)
    selection = threshold(keys, logits.sigmoid(), (2, length // 2), generator=generator)
    patch_mask = selection.patch_mask
    patch_mask.logits = logits
    patch_mask.surrogate = estimator.surrogate(logits, keys, selection)
    return logits, keys, selection, patch_mask
