"""Numbers that tell whether the masks are healthy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from amn_masking.mask import PatchMask
from amn_masking.network import logit_entropy
from amn_masking.noise import uniform
from amn_masking.patches import image_means, masked_mean


@torch.no_grad()
def mask_statistics(patch_mask: PatchMask) -> dict[str, Tensor]:
    """Scalars to log every step, without a gradient.

    Returns:
        ``mask_ratio``, ``mask_ratio_min``, ``mask_ratio_max``: share of masked patches, over the
        images of the batch; ``prediction_ratio``: of predicted ones, where it was asked for. For a
        learned mask also ``score_spread``: standard deviation of an image's valid patch scores,
        before they are standardised, mean over the batch; and ``threshold``: mean of the images'
        thresholds.

    Example:
        >>> import torch
        >>> from amn_masking import RandomMasking
        >>> mask_statistics(RandomMasking(0.75)(torch.rand(2, 3, 64, 64)))["mask_ratio"]
        tensor(0.7500)
    """
    ratio = patch_mask.mask.mean(1)
    statistics = {
        "mask_ratio": ratio.mean(),
        "mask_ratio_min": ratio.min(),
        "mask_ratio_max": ratio.max(),
    }
    if patch_mask.num_predicted is not None:
        statistics["prediction_ratio"] = patch_mask.predicted.mean()
    if (learned := patch_mask.learned) is not None:
        scores, valid = learned.patch_scores, patch_mask.valid
        variance = image_means((scores - image_means(scores, valid)).square(), valid)
        statistics["score_spread"] = variance.sqrt().mean()
        statistics["threshold"] = learned.threshold.mean()
    return statistics


@torch.no_grad()
def adversarial_gain(
    error_under: Callable[[PatchMask], Tensor],
    patch_mask: PatchMask,
    generator: Generator | None = None,
) -> Tensor:
    """How much harder these masks are than random ones: error over error of the predicted patches.

    Args:
        error_under: gives the ``(B, L)`` error of each patch of one batch under a mask.
        patch_mask: the strategy's, of that batch.
        generator: source of the random positions, on the mask's device.

    Returns:
        A scalar: the mean error of the predicted patches, over the same under masks that hide and
        predict as many patches of each image at uniformly random positions. Above 1 = harder.

    Raises:
        ValueError: no patch of the batch is masked.

    Example:
        >>> import torch
        >>> patch_mask = PatchMask.from_mask(torch.tensor([[1, 1, 0, 0]]).expand(64, -1))
        >>> error = torch.tensor([[3.0, 3.0, 1.0, 1.0]]).expand(64, -1)  # the left two are hard
        >>> bool(adversarial_gain(lambda mask: error, patch_mask) > 1.2)
        True
    """
    if patch_mask.masks_nothing:
        raise ValueError(
            "adversarial_gain compares the errors of masked patches, but this mask masks none; "
            "give it the mask of a training step"
        )
    learned, random = (
        masked_mean(error_under(masks), masks.predicted)
        for masks in (patch_mask, at_random(patch_mask, generator))
    )
    return learned / random


def at_random(patch_mask: PatchMask, generator: Generator | None = None) -> PatchMask:
    """Masks that hide and predict as many patches of each image, at random valid positions. In the
    place of tubes, tubes.
    """
    slots, valid, counts = patch_mask.slots, patch_mask.valid, patch_mask.visible_counts
    places, predicted = patch_mask.num_patches // slots, patch_mask.num_predicted
    valid = None if valid is None else valid[:, :places]  # alike in every slot, as all of a tube is
    noise = uniform((len(patch_mask.mask), places), patch_mask.mask.device, generator)
    if valid is not None:
        noise = noise.masked_fill(~valid, -1.0)
    drawn = PatchMask.from_shuffle(
        noise.argsort(1),
        patch_mask.num_visible // slots,
        patch_mask.grid if slots == 1 else patch_mask.grid[1:],
        None if counts is None else counts // slots,
        valid,
        None if predicted is None else predicted // slots,
    )
    return drawn if slots == 1 else drawn.tubes(slots)


@torch.no_grad()
def score_entropy(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """How evenly the chance to be masked is spread over an image's patches: the mean over the
    images of :func:`~amn_masking.network.logit_entropy`.

    Args:
        logits: ``(B, L)``, L >= 2.
        valid: ``(B, L)`` bool, the patches that can be masked; None for all.

    Returns:
        A scalar in [0, 1]: 1 where all patches are equal, 0 where one has all the chance.

    Example:
        >>> import torch
        >>> score_entropy(torch.zeros(2, 16))
        tensor(1.)
    """
    return logit_entropy(logits.detach().float(), valid).mean()


@torch.no_grad()
def mask_distance(mask: Tensor) -> Tensor:
    """How much the masks of a batch differ, beside masks drawn at random.

    The mean Hamming distance of two images' masks, divided by what it would be, on average, for
    masks of the same counts at uniformly random positions. With c_l the images that mask position
    l, and r_i the ratio of image i, both sums over ordered pairs of different images::

        distance = sum_l 2 c_l (B - c_l) / (B (B - 1) L)
        random   = sum_{i != j} (r_i + r_j - 2 r_i r_j) / (B (B - 1))     2 r (1 - r) if all equal

    Args:
        mask: ``(B, L)`` of 0 and 1, B >= 2, with a visible patch in every image and a masked one
            in some.

    Returns:
        A scalar, the ratio of the two: 0 where all images have one mask, about 1 where position
        says nothing, more than 1 where the images avoid each other's positions.

    Raises:
        ValueError: fewer than two images.

    Example:
        >>> import torch
        >>> mask_distance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(2.)
    """
    batch, length = mask.shape
    if batch < 2:
        raise ValueError(f"the distance between masks expected at least two images, got {batch}")
    count = mask.sum(0)
    distance = (2 * count * (batch - count)).sum() / length
    ratio = mask.mean(1)
    total = ratio.sum()
    random = 2 * (batch - 1) * total - 2 * (total.square() - ratio.square().sum())
    return distance / random


class PositionMeter:
    """Whether the masks know more than the position: a running share of images that mask each.

    With f_l the share of images that mask position l, r the mean of f, and H(p) the entropy of a
    coin of chance p::

        entropy = mean_l H(f_l) / H(r)

    It is the share of a mask bit's uncertainty that is left when its position is known: 1 where
    every position is masked equally often, 0 where the masks are frozen, whatever their ratio.
    The entropy of f / sum(f) would say the same, but its least value depends on the ratio.

    n random masks give about 1 - 1 / (2 n H(r)) with H in nats: 0.99 for 100 masks at ratio 0.25.

    The running share is the plain mean of the first ``window`` batches, then an exponential one
    with the weight 1 / ``window`` for the newest. Each grid has its own, so that image sizes may
    change from batch to batch. All stays on the masks' device; nothing is read back.

    Args:
        window: batches, at least 1.

    Raises:
        ValueError: ``window`` is less than 1.

    Example:
        >>> import torch
        >>> meter = PositionMeter(window=100)
        >>> meter.update(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), grid=(2, 2))  # always the same mask
        >>> meter.update(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), grid=(2, 2))
        >>> meter.entropy()
        tensor(0.)
    """

    def __init__(self, window: int = 100) -> None:
        if window < 1:
            raise ValueError(f"window counts batches, at least 1, got {window}")
        self.window = window
        self.frequencies: dict[tuple[int, ...], Tensor] = {}
        self.batches: dict[tuple[int, ...], int] = {}
        self.grid: tuple[int, ...] | None = None  # of the newest batch

    @torch.no_grad()
    def update(self, mask: Tensor, grid: tuple[int, ...]) -> None:
        """Count the masks of a batch.

        Args:
            mask: ``(B, L)``, 1 = masked; a row may also be the mean of several images' masks.
            grid: (rows, columns) of patches, or of one or three dimensions.
        """
        self.grid = grid
        share = mask.detach().mean(0)
        batches = self.batches.get(self.grid, 0) + 1
        self.batches[self.grid] = batches
        before = self.frequencies.get(self.grid, share).to(share.device)
        self.frequencies[self.grid] = before.lerp(share, 1 / min(batches, self.window))

    @property
    def filled(self) -> bool:
        """Whether a whole window of batches of the newest grid was counted."""
        return self.grid is not None and self.batches[self.grid] >= self.window

    def entropy(self) -> Tensor:
        """A scalar in [0, 1], of the newest batch's grid; NaN if nothing of it was ever masked.

        Raises:
            ValueError: nothing was counted yet.
        """
        if self.grid is None:
            raise ValueError("expected at least one update(mask, grid) before entropy()")
        frequency = self.frequencies[self.grid].clamp(0, 1)
        return coin_entropy(frequency).mean() / coin_entropy(frequency.mean())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors on the CPU and plain numbers."""
        return {
            "frequencies": {grid: share.cpu() for grid, share in self.frequencies.items()},
            "batches": dict(self.batches),
            "grid": self.grid,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.frequencies = dict(state["frequencies"])
        self.batches = dict(state["batches"])
        self.grid = state["grid"]


def coin_entropy(chance: Tensor) -> Tensor:
    """-p log p - (1 - p) log(1 - p) in nats, 0 at p = 0 and 1."""
    return torch.special.entr(chance) + torch.special.entr(1 - chance)
