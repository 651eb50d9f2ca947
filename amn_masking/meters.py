"""Numbers that tell whether the masks are healthy."""

from __future__ import annotations

import torch
from torch import Tensor

from amn_masking.mask import PatchMask


@torch.no_grad()
def mask_statistics(patch_mask: PatchMask) -> dict[str, Tensor]:
    """Scalars to log every step, without a gradient.

    Returns:
        ``mask_ratio``, ``mask_ratio_min``, ``mask_ratio_max``: share of masked patches, over the
        images of the batch. For a learned mask also ``score_spread``: standard deviation of an
        image's patch scores, before they are standardised, mean over the batch; and
        ``threshold``: mean of the images' thresholds.
    """
    ratio = patch_mask.mask.mean(1)
    statistics = {
        "mask_ratio": ratio.mean(),
        "mask_ratio_min": ratio.min(),
        "mask_ratio_max": ratio.max(),
    }
    if patch_mask.patch_scores is not None:
        statistics["score_spread"] = patch_mask.patch_scores.std(1, correction=0).mean()
    if patch_mask.threshold is not None:
        statistics["threshold"] = patch_mask.threshold.mean()
    return statistics
