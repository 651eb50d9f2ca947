"""The adversarial masking network (AMN): images to a score map, a score map to patch logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking.config import settings
from amn_masking.patches import SHAPES, image_means, pool_to_patches, times

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# The logit of a patch that cannot be drawn. Not minus infinity, whose gradient is not a number.
NEVER = -1e9


class MaskingNetwork(nn.Module):
    """The specification's network: 3 convolutions (3x3, stride 1, padding 1), ReLU, sigmoid.

    Args:
        in_channels: channels of the images.
        num_layers: convolutions, the last of which gives one channel.
        channels: width of the hidden layers.
        kernel_size: odd; the padding keeps the size.
        downsample: the images are area-pooled by this factor first: the same network, its square
            cheaper, with that many times the receptive field. 1 is the specification's preset;
            there a 3-layer network sees 7 pixels, so local texture only. A tuple for a factor of
            each dimension, such as (1, 8, 8) for clips.
        norm: ``'group'`` puts a GroupNorm before each ReLU. Not BatchNorm: a patch's score would
            depend on the other images of the batch.
        dimensions: 1 for signals ``(B, C, T)``, 2 for images, 3 for clips or volumes
            ``(B, C, D, H, W)``: convolutions over as many.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> import torch
        >>> MaskingNetwork(downsample=4)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_layers: int = 3,
        channels: int = 32,
        kernel_size: int = 3,
        downsample: int | tuple[int, ...] = 1,
        norm: Literal["group"] | None = None,
        dimensions: Literal[1, 2, 3] = 2,
    ) -> None:
        super().__init__()
        if dimensions not in CONVOLUTIONS:
            raise ValueError(f"dimensions must be 1, 2 or 3, got {dimensions!r}")
        factors = (downsample,) * dimensions if isinstance(downsample, int) else tuple(downsample)
        if len(factors) != dimensions:
            raise ValueError(
                f"downsample expected one number, or one for each of {dimensions} dimensions, "
                f"{axes_of(dimensions)}, got {downsample}"
            )
        sizes = dict(
            in_channels=in_channels,
            num_layers=num_layers,
            channels=channels,
            downsample=min(factors),
        )
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, so that the size is kept, got {kernel_size}"
            )
        if norm not in (None, "group"):
            raise ValueError(f"norm must be None or 'group', got {norm!r}")
        self.in_channels = in_channels
        self.downsample = downsample
        self.factors = factors
        self.dimensions = dimensions
        convolution = CONVOLUTIONS[dimensions]
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers.append(convolution(in_channels, channels, kernel_size, padding=kernel_size // 2))
            if norm == "group":
                layers.append(nn.GroupNorm(1, channels))
            layers.append(nn.ReLU(inplace=True))
            in_channels = channels
        layers.append(convolution(in_channels, 1, kernel_size, padding=kernel_size // 2))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Score map of the images.

        Args:
            images: ``(B, C, H, W)``, or of the network's ``dimensions``.

        Returns:
            ``(B, 1, H / downsample, W / downsample)`` in (0, 1).

        Raises:
            ValueError: other dimensions, another channel count, or a size that ``downsample`` does
                not divide.
        """
        if images.dim() != self.dimensions + 2 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images of shape {shape_of(self.dimensions, self.in_channels)}, got "
                f"{tuple(images.shape)}; {self.mend(images)}"
            )
        size = images.shape[2:]
        if any(side % factor for side, factor in zip(size, self.factors, strict=True)):
            fitting = tuple(map(math.gcd, size, self.factors))
            raise ValueError(
                f"downsample={self.downsample} does not divide {axes_of(self.dimensions)} = "
                f"{times(size)}, the sides of the images; set "
                f"network=dict(downsample={fitting}), which does"
            )
        images = area_pool(images, self.factors)
        if self.dimensions == 2:
            # The layout in which convolutions of few channels are fastest: on a CPU half of the
            # time forward, a tenth to two fifths less with the backward pass. Of clips it is not.
            images = images.contiguous(memory_format=torch.channels_last)
        return torch.sigmoid(self.convolutions(images))

    def mend(self, images: Tensor) -> str:
        """What to do about images that are not the network's."""
        if images.dim() != self.dimensions + 2:
            return f"set network=dict(dimensions={max(images.dim() - 2, 1)}), or leave it out"
        order = [0, self.dimensions + 1, *range(1, self.dimensions + 1)]
        if images.shape[-1] == self.in_channels:
            came = shape_of(self.dimensions)
            came = came.replace("C, ", "").replace(")", ", C)")
            return f"these are channels-last {came}: give images.permute{tuple(order)}"
        if self.dimensions == 3 and images.shape[2] == self.in_channels:
            return "these have the frames before the channels: give images.transpose(1, 2)"
        return "set network=dict(in_channels=...) to the images' channels"

    if TYPE_CHECKING:  # an editor then knows what a score map is

        def __call__(self, images: Tensor) -> Tensor: ...

    def extra_repr(self) -> str:
        return settings(self)


def shape_of(dimensions: int, channels: int | str = "C") -> str:
    """``(B, 3, H, W)``, for messages."""
    return SHAPES[dimensions].replace("C", str(channels))


def axes_of(dimensions: int) -> str:
    """``(H, W)``, for messages."""
    return SHAPES[dimensions].replace("B, C, ", "")


def area_pool(images: Tensor, factors: Sequence[int]) -> Tensor:
    """Mean over squares of ``factors`` pixels: ``(B, C, H, W)`` to ``(B, C, H / f, W / f)``.

    Over the rows first, whose neighbours in memory are added side by side: on a CPU several times
    faster than ``avg_pool2d``.
    """
    for axis, factor in enumerate(factors, 2):
        if factor > 1:
            images = images.unflatten(axis, (-1, factor)).mean(axis + 1)
    return images


def pool_scores(score_map: Tensor, grid: Sequence[int]) -> Tensor:
    """``(B, L)`` patch scores: the mean of the score map, ``(B, 1, H, W)``, over each patch.

    Raises:
        ValueError: the map is of another shape, or the grid does not divide it.
    """
    if score_map.dim() != len(grid) + 2 or score_map.shape[1] != 1:
        axes = {1: "T'", 2: "H', W'", 3: "D', H', W'"}[len(grid)]
        raise ValueError(
            f"network expected to give a score map of shape (B, 1, {axes}), got "
            f"{tuple(score_map.shape)}"
        )
    name = "a score map (the network's downsample must divide the patch size)"
    return pool_to_patches(score_map, grid, name)


def to_logits(patch_scores: Tensor, eps: float = 1e-6) -> Tensor:
    """Inverse of the sigmoid, with the scores kept ``eps`` away from 0 and 1."""
    return torch.logit(patch_scores, eps=eps)


def standardise_logits(
    logits: Tensor, temperature: float = 1.0, valid: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Zero mean and standard deviation 1 / temperature over each image's patches.

    The network then chooses an order of the patches and not a scale. With free logits their
    spread was seen to grow without bound and the masks to freeze.

    Args:
        logits: ``(B, L)``.
        temperature: > 0; larger is closer to uniform sampling.
        valid: ``(B, L)`` bool; mean and deviation are of these patches. None for all.
        eps: logits that vary less than this are as good as equal.
    """
    if valid is None:
        return F.layer_norm(logits, logits.shape[1:], eps=eps**2) / temperature
    centred = logits - image_means(logits, valid)
    variance = image_means(centred.square(), valid)
    return centred / ((variance + eps**2).sqrt() * temperature)


def logit_entropy(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """How evenly the chance to be masked is spread: H(softmax(z)) / log L, with its gradient.

    softmax(z) is the chance of each patch to be masked first when masks are drawn without
    replacement. Like the masks, and unlike the entropy of each score by itself, it does not change
    when one number is added to all logits of an image.

    Args:
        logits: ``(B, L)``, L >= 2.
        valid: ``(B, L)`` bool, the patches that can be masked; None for all.

    Returns:
        ``(B,)`` in [0, 1]: 1 where all patches are equal, 0 where one has all the chance.
    """
    if valid is not None:
        logits = logits.masked_fill(~valid, NEVER)
    first = torch.distributions.Categorical(logits=logits, validate_args=False)
    length = math.log(logits.shape[1]) if valid is None else valid.sum(1).log()
    return first.entropy() / length
