"""``ranking``: the logits learn to order the patches by their error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.estimators.base import Estimator
from amn_masking.learned import LearnedMask
from amn_masking.thresholds.base import Selection


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

    Example:
        >>> from amn_masking import AdversarialMasking
        >>> masking = AdversarialMasking(mask_ratio=0.5, estimator=dict(type="ranking"))
        >>> type(masking.estimator).__name__
        'Ranking'
    """

    def surrogate(self, logits: Tensor, priorities: Tensor, selection: Selection) -> Tensor:
        return selection.patch_mask.mask

    def objective(self, reward: Tensor, learned: LearnedMask) -> Tensor:
        """Mean log-likelihood of the masked patches' order, less its own value: 0.

        At negative strength, of the reversed order: to minimise the likelihood of the order itself
        would push the logits apart without end, and most where they are wrong already.
        """
        logits, mask = learned.logits, learned.chosen.mask
        sign = 1.0 if learned.strength >= 0 else -1.0
        if learned.chosen.visible_counts is None:
            ids = learned.chosen.ids_mask
            logits, reward, mask = (x.gather(1, ids) for x in (logits, reward, mask))
        harder = (reward[:, :, None] > reward[:, None, :]) & mask.bool()[:, :, None]
        harder = harder & mask.bool()[:, None, :]
        likelihood = F.logsigmoid(sign * (logits[:, :, None] - logits[:, None, :]))
        pairs = harder.sum((1, 2)).clamp_min(1)
        mean = (torch.where(harder, likelihood, 0.0).sum((1, 2)) / pairs).mean()
        return sign * (mean - mean.detach())
