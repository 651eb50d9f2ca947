"""What the contract suite asks of a codebase."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amn_masking.mask import PatchMask
from amn_masking.strategies import MaskingStrategy


class Step(NamedTuple):
    """One forward pass of a masked autoencoder under a given mask.

    Attributes:
        reconstruction: the codebase's own loss, a scalar.
        error: ``(B, L)`` per-patch error that the adapter gives the adversary.
        tokens: ``(B, P + N, D)`` what entered the first encoder block, seen from inside by a hook.
        loss: what the adapter minimises, with the strategy's adversarial terms.
        patch_mask: the mask that the strategy made in this pass.
    """

    reconstruction: Tensor
    error: Tensor
    tokens: Tensor
    loss: Tensor
    patch_mask: PatchMask


class Target:
    """A small masked autoencoder of one codebase, through its adapter.

    Attributes:
        name: the row in the table.
        package: what must be installed.
        prefix: P, prefix tokens in front of the patches (class, register tokens).
        image_size: (height, width) in pixels of the test images.
        patch_size: side of a patch in pixels.
        free_counts: whether images of a batch may keep different numbers of patches.
        gate: whether the adapter takes ``gate=True``.
    """

    name: str
    package: str
    prefix: int = 1
    image_size: tuple[int, int] = (32, 32)
    patch_size: int = 8
    free_counts: bool = False
    gate: bool = False

    def build(self) -> nn.Module:
        """The stock model of the codebase, small, with random weights, in training mode.

        Not yet changed by any adapter. The caller has seeded torch.
        """
        raise NotImplementedError

    def all_tokens(self, model: nn.Module, images: Tensor) -> Tensor:
        """``(B, P + L, D)`` entering the first encoder block where nothing is masked.

        By the codebase's own code, without the adapter.
        """
        raise NotImplementedError

    def step(self, model: nn.Module, images: Tensor, masking: MaskingStrategy) -> Step:
        """One forward pass through the adapter, under the mask that ``masking`` makes."""
        raise NotImplementedError

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> Any:
        """``(tokens, loss)`` of the codebase's own random masking, made from ``(B, L)`` noise.

        ``tokens`` as in :class:`Step`; ``loss`` the codebase's own, a scalar. None where the
        codebase has no random masking or no loss of its own.
        """
        raise NotImplementedError


class Given(MaskingStrategy):
    """A strategy that gives one prepared mask, whatever the images."""

    def __init__(self, patch_size: int, patch_mask: PatchMask) -> None:
        super().__init__(patch_size)
        self.patch_mask = patch_mask
        self.free_counts = patch_mask.visible_counts is not None

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        return self.patch_mask
