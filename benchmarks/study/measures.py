"""What a trained encoder and its masks are worth, in numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import gaussian_blur

from amn_masking.counts import count_visible
from amn_masking.mask import PatchMask
from amn_masking.meters import (
    PositionMeter,
    at_random,
    mask_distance,
    score_entropy,
)
from amn_masking.patches import masked_mean
from amn_masking.strategies.ranked import RankedMasking
from amn_masking.thresholds import Difficulty
from amn_masking.tools.knn import vote
from benchmarks.study.data import Data, Images

Encode = Callable[[Tensor], np.ndarray]

UNKNOWN_FOREGROUND = 2000  # test images that masks are measured on where no foreground is known
PROBE_CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def fit_probe(features: np.ndarray, labels: np.ndarray, c: float) -> Pipeline:
    """Logistic regression on standardised features."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))
    return probe.fit(features, labels)


def feature_metrics(
    encode: Encode, data: Data, patch: int, probe_c: float | None, seed: int
) -> dict[str, float]:
    """Accuracies on the test images, in [0, 1].

    Args:
        encode: ``(N, C, S, S)`` to ``(N, D)`` features.
        data: to fit the probe on, and to test on.
        patch: side of the patches that are hidden from the probe.
        probe_c: of the probe; None for the one of ``PROBE_CS`` that is best *on the test images*,
            which no method may do, but a baseline to beat may.
        seed: of the noise and of the hidden patches.
    """
    images, labels = data.test.centre(), data.test.labels
    known, queries = encode(data.train.centre()), encode(images)
    cs = PROBE_CS if probe_c is None else (probe_c,)
    probes = [fit_probe(known, data.train.labels, c) for c in cs]
    probe = max(probes, key=lambda probe: probe.score(queries, labels))
    given = (torch.from_numpy(values) for values in (known, data.train.labels, queries))
    metrics = {
        "probe": probe.score(queries, labels),
        "knn": float((vote(*given).numpy() == labels).mean()),
    }
    disturbed = {
        "occluded": occluded(images, patch, seed),
        "noise": images + 0.5 * torch.randn(images.shape, generator=seeded(seed)).to(images),
        "blur": gaussian_blur(images, [7, 7], [1.5, 1.5]),
    }
    if data.swapped is not None:
        disturbed["swapped"] = data.swapped.centre()
    for name, pixels in disturbed.items():
        metrics[f"probe_{name}"] = probe.score(encode(pixels), labels)
    return metrics


def occluded(images: Tensor, patch: int, seed: int) -> Tensor:
    """A quarter of the patches, drawn at random, set to the mean colour."""
    h, w = (length // patch for length in images.shape[-2:])
    noise = torch.rand(len(images), h * w, generator=seeded(seed)).to(images.device)
    return PatchMask.from_shuffle(noise.argsort(1), h * w - h * w // 4, (h, w)).apply(images)


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@torch.no_grad()
def mask_metrics(model: Any, images: Images, patch: int, seed: int) -> dict[str, float]:
    """The masks that the strategy draws for these images at the end of training, and the errors
    of the autoencoder under them and under others. In training mode, as a step sees them.
    """
    torch.manual_seed(seed)
    model.train()
    pixels = images.centre()
    if images.ink is None:
        pixels = pixels[:UNKNOWN_FOREGROUND]
    patch_mask = model.make_mask(pixels)

    def error(masks: PatchMask) -> Tensor:
        return masked_mean(model.error_under(masks, pixels, []), masks.predicted)

    positions = PositionMeter()
    positions.update(patch_mask.predicted, patch_mask.grid)
    # Not the seed of the masks: random ones would be the same masks.
    random = error(at_random(patch_mask, seeded(seed + 1, pixels.device)))
    metrics = {
        "mask_ratio": patch_mask.mask.mean(),
        "random_mask_error": random,
        "adversarial_gain": error(patch_mask) / random,
        "position_entropy": positions.entropy(),
        "mask_distance": mask_distance(patch_mask.predicted),
    }
    ink = None
    if images.ink is not None:
        ink = patch_share(images.centre(images.ink), patch)
        metrics["foreground_lift"] = lift(patch_mask.predicted, ink)
    if images.noise is not None:
        metrics["noise_lift"] = lift(
            patch_mask.predicted, patch_share(images.centre(images.noise), patch)
        )
    learned = patch_mask.learned
    scores = None if learned is None else learned.patch_scores
    if isinstance(model.masking, RankedMasking):
        scores = model.masking.priorities(pixels, int(patch_mask.predicted[0].sum()), None)
    if scores is not None and ink is not None:
        metrics["score_auc"] = ranking_auc(scores, ink >= 0.1)
    if isinstance(threshold := getattr(model.masking, "threshold", None), Difficulty):
        metrics["running_gain"] = threshold.running_gain
    if learned is not None:
        metrics["score_entropy"] = score_entropy(learned.score_logits)
    for name, masks in reference_masks(pixels, patch, seed, ink).items():
        metrics[f"error_{name}"] = error(masks)
    return {name: float(value) for name, value in metrics.items()}


def patch_share(pixels: Tensor, patch: int) -> Tensor:
    """``(N, 1, S, S)`` to the mean over each patch, ``(N, L)``."""
    return F.avg_pool2d(pixels, patch).flatten(1)


def lift(mask: Tensor, share: Tensor) -> float:
    """How much of a region masks cover, over what random masks would: 1 = they do not mind it.

    Args:
        mask: ``(N, L)``, 1 = masked.
        share: ``(N, L)`` share of each patch that belongs to the region.
    """
    return float((mask * share).sum() / mask.sum() / share.mean())


def ranking_auc(scores: Tensor, positive: Tensor) -> float:
    """Chance that a positive patch of an image has the larger score than a negative one of the
    same image, ties counting half; the mean over the images that have both.

    Args:
        scores: ``(N, L)``.
        positive: ``(N, L)`` bool.
    """
    above = (scores[:, :, None] > scores[:, None]).float()
    above += 0.5 * (scores[:, :, None] == scores[:, None])
    pairs = (positive[:, :, None] & ~positive[:, None]).float()
    counts = pairs.sum((1, 2))
    wins = (above * pairs).sum((1, 2))
    return float((wins / counts)[counts > 0].mean())


def reference_masks(
    images: Tensor, patch: int, seed: int, ink: Tensor | None
) -> dict[str, PatchMask]:
    """Masks that no strategy made, the same for all: at random, and by the foreground at 0.5.

    Args:
        images: ``(N, C, H, W)`` that are masked.
        patch: side of a patch.
        seed: of the random order.
        ink: ``(N, L)`` the foreground's share of each patch; None: only the random ones.
    """
    grid = images.shape[2] // patch, images.shape[3] // patch
    length = grid[0] * grid[1]
    noise = torch.rand(len(images), length, generator=seeded(seed)).to(images.device)
    masks = {
        f"random_{ratio}": PatchMask.from_shuffle(
            noise.argsort(1), count_visible(length, ratio), grid
        )
        for ratio in (0.25, 0.5, 0.75)
    }
    if ink is None:
        return masks
    half = count_visible(length, 0.5)
    for name, sign in (("foreground_hidden", 1), ("foreground_visible", -1)):
        order = (sign * ink + 1e-6 * noise).argsort(1)  # the last are masked
        masks[name] = PatchMask.from_shuffle(order, half, grid)
    return masks


def step_flops(model: Any, pixels: Tensor) -> dict[str, float]:
    """FLOPs of one image, by torch's counter: of the encoder forward under the strategy's mask,
    and of a whole step without the optimizer, forward and backward.
    """
    model.train()
    with FlopCounterMode(display=False) as step:
        sum(v for k, v in model.loss(pixels, []).items() if "loss" in k).backward()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model.loss(pixels, [])
    model.zero_grad()
    encoder = sum(forward.get_flop_counts()[type(model.backbone).__name__].values())
    return {
        "flops_encoder": encoder / len(pixels),
        "flops_step": step.get_total_flops() / len(pixels),
    }
