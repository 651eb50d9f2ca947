"""The probe of measures.py in torch, on any device.

The same classifier as scikit-learn's to rounding (a test compares), for numbers of images at which
that would take longer than the training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Probe:
    """Multinomial logistic regression on standardised features.

    Attributes:
        mean, scale: ``(D,)`` float64, of the features that it was fitted on.
        weight: ``(D + 1, K)`` float64, the intercepts last.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """``(N,)`` labels of ``(N, D)`` features."""
        return logits(self.weight, (features.double() - self.mean) / self.scale).argmax(1)

    def score(self, features: Tensor, labels: Tensor) -> float:
        """Share of the labels that are predicted."""
        return float((self.predict(features) == labels).double().mean())


def logits(weight: Tensor, features: Tensor) -> Tensor:
    return features @ weight[:-1] + weight[-1]


def fit_probe(features: Tensor, labels: Tensor, c: float, tol: float = 1e-4) -> Probe:
    """Fit by L-BFGS on all images at once, in float64.

    Minimises ``c * sum(cross entropies) + |W|^2 / 2``, without the intercepts in ``|W|``, as
    scikit-learn's ``LogisticRegression(C=c)`` does.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)`` int64, 0 to K - 1.
        c: inverse strength of the regularisation, > 0.
        tol: of the largest entry of the gradient of the mean over the images, at which it ends.
    """
    features = features.double()
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1)
    standardised = (features - mean) / scale
    count, dim = standardised.shape
    weight = standardised.new_zeros(dim + 1, int(labels.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], lr=1, max_iter=500, tolerance_grad=tol, tolerance_change=0,
        history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        # By the mean, so that the step sizes that L-BFGS begins with suit any number of images.
        loss = F.cross_entropy(logits(weight, standardised), labels)
        loss = loss + weight[:-1].square().sum() / (2 * c * count)
        loss.backward()
        return loss

    optimizer.step(closure)
    return Probe(mean, scale, weight.detach())


def few(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of that share of each class, at least one image, drawn by ``seed``."""
    rng = np.random.default_rng([6, seed])
    members = (rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels))
    return np.concatenate([ids[: max(1, round(share * len(ids)))] for ids in members])
