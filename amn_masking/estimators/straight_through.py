"""``straight_through``: the hard mask forward, a sigmoid's gradient backward."""

from __future__ import annotations

import torch
from torch import Tensor

from amn_masking.estimators.base import Estimator, gumbel_noise
from amn_masking.thresholds.selection import Selection


class StraightThrough(Estimator):
    """surrogate = m + (p - sg(p)), p = sigmoid((z - sg(tau)) / T).

    Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons"
    (arXiv:1308.3432), with the threshold that made the mask in place of a fixed one. Biased, of
    low variance.

    Args:
        temperature: T > 0 of the sigmoid; smaller looks only at patches near the threshold.
        noise: scale >= 0 of the Gumbel noise on the logits when the mask is chosen; 0 is
            deterministic. The gradient is taken at the logits without noise.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, temperature: float = 1.0, noise: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if noise < 0:
            raise ValueError(f"noise is a scale and cannot be negative, got {noise}")
        self.temperature = temperature
        self.noise = noise

    def keys(self, logits: Tensor, free_counts: bool, generator: torch.Generator | None) -> Tensor:
        logits = logits.detach()
        if self.noise == 0:
            return logits
        return logits + self.noise * gumbel_noise(logits, generator)

    def surrogate(self, logits: Tensor, keys: Tensor, selection: Selection) -> Tensor:
        soft = torch.sigmoid((logits - selection.tau) / self.temperature)
        return selection.patch_mask.mask + (soft - soft.detach())
