"""The adversarial masking network (AMN): images to a score map, a score map to patch logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking.config import settings
from amn_masking.patches import image_means, pool_to_patches

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
            there a 3-layer network sees 7 pixels, so local texture only.
        norm: ``'group'`` puts a GroupNorm before each ReLU. Not BatchNorm: a patch's score would
            depend on the other images of the batch.

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
        downsample: int = 1,
        norm: Literal["group"] | None = None,
    ) -> None:
        super().__init__()
        sizes = dict(
            in_channels=in_channels, num_layers=num_layers, channels=channels, downsample=downsample
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
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers.append(nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2))
            if norm == "group":
                layers.append(nn.GroupNorm(1, channels))
            layers.append(nn.ReLU(inplace=True))
            in_channels = channels
        layers.append(nn.Conv2d(in_channels, 1, kernel_size, padding=kernel_size // 2))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Score map of the images.

        Args:
            images: ``(B, C, H, W)``.

        Returns:
            ``(B, 1, H / downsample, W / downsample)`` in (0, 1).

        Raises:
            ValueError: not four dimensions, another channel count, or a size that ``downsample``
                does not divide.
        """
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            mend = "set network=dict(in_channels=...) to the images' channels"
            if images.dim() == 4 and images.shape[3] == self.in_channels:
                mend = "these are channels-last (B, H, W, C): give images.permute(0, 3, 1, 2)"
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W), got "
                f"{tuple(images.shape)}; {mend}"
            )
        height, width = images.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"downsample={self.downsample} does not divide images of {height} x {width} pixels"
            )
        if self.downsample > 1:
            images = area_pool(images, self.downsample)
        # The layout in which convolutions of few channels are fastest: on a CPU half of the time
        # forward, a tenth to two fifths less with the backward pass.
        images = images.contiguous(memory_format=torch.channels_last)
        return torch.sigmoid(self.convolutions(images))

    if TYPE_CHECKING:  # an editor then knows what a score map is

        def __call__(self, images: Tensor) -> Tensor: ...

    def extra_repr(self) -> str:
        return settings(self)


def area_pool(images: Tensor, factor: int) -> Tensor:
    """Mean over squares of ``factor`` pixels: ``(B, C, H, W)`` to ``(B, C, H / f, W / f)``.

    Over the rows first, whose neighbours in memory are added side by side: on a CPU several times
    faster than ``avg_pool2d``.
    """
    batch, channels, height, width = images.shape
    rows = images.reshape(batch, channels, height // factor, factor, width).mean(3)
    return rows.unflatten(3, (width // factor, factor)).mean(4)


def pool_scores(score_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, L)`` patch scores: the mean of the score map, ``(B, 1, H, W)``, over each patch.

    Raises:
        ValueError: the map is of another shape, or the grid does not divide it.
    """
    if score_map.dim() != 4 or score_map.shape[1] != 1:
        raise ValueError(
            "network expected to give a score map of shape (B, 1, H', W'), got "
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
