"""``ranking``: the logits learn to order the patches by their error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.estimators.base import Estimator
from amn_masking.mask import PatchMask
from amn_masking.thresholds.selection import Selection


class Ranking(Estimator):
    """No gradient through the mask; log sigmoid(z_i - z_j) over masked pairs with l_i > l_j.

    The pairwise logistic loss of hard-patch mining: Wang et al., "Hard Patches Mining for Masked
    Image Modeling" (arXiv:2304.05919). There a decoder on the autoencoder's own
    features predicts the order, and an exponential moving average of it scores the image; here
    the masking network does, and the autoencoder is not touched. It fits an order, not the
    expected error of a mask: it does not see how patches that are masked together make each
    other harder.

    Args:
        noise: scale >= 0 of the noise on the logits when the mask is chosen; 0 is deterministic.

    Raises:
        ValueError: a negative scale.
    """

    def surrogate(self, logits: Tensor, keys: Tensor, selection: Selection) -> Tensor:
        return selection.patch_mask.mask

    def objective(self, error: Tensor, patch_mask: PatchMask) -> Tensor:
        """Mean log-likelihood of the masked patches' order, less its own value: 0.

        Args:
            error: ``(B, L)`` per-patch error l.
            patch_mask: the mask that the error was made under.
        """
        logits, mask = patch_mask.logits, patch_mask.mask
        if logits is None:
            raise ValueError("ranking expected a PatchMask with logits, got one made elsewhere")
        error = error.detach()
        if patch_mask.visible_counts is None:
            ids = patch_mask.ids_mask
            logits, error, mask = (x.gather(1, ids) for x in (logits, error, mask))
        harder = (error[:, :, None] > error[:, None, :]) & mask.bool()[:, :, None]
        harder = harder & mask.bool()[:, None, :]
        likelihood = F.logsigmoid(logits[:, :, None] - logits[:, None, :])
        pairs = harder.sum((1, 2)).clamp_min(1)
        reward = (torch.where(harder, likelihood, 0.0).sum((1, 2)) / pairs).mean()
        return reward - reward.detach()
