"""What the contract suite asks of a codebase.

A module of this folder whose name ends in ``_target`` or ``_targets`` is a codebase; it lists its
models, instances of :class:`Target`, in ``TARGETS``. It may import its codebase at the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        decoded: ``(B, P + N + M, D')`` what entered the first decoder block, M predicted patches.
        loss: what the adapter minimises, with the strategy's adversarial terms.
        patch_mask: the mask that the strategy made in this pass.
    """

    reconstruction: Tensor
    error: Tensor
    tokens: Tensor
    decoded: Tensor
    loss: Tensor
    patch_mask: PatchMask


class Target:
    """A small masked autoencoder of one codebase, through its adapter.

    Attributes:
        name: the row in the table.
        package: what must be installed.
        prefix: P, prefix tokens in front of the patches (class, register tokens).
        image_size: (height, width) in pixels of the test images; of clips (frames, height, width).
        patch_size: side of a patch in pixels; of clips (frames, height, width).
        own_patch: side of the model's patches, where a strategy's may be a multiple of it.
        free_counts: whether images of a batch may keep different numbers of patches.
        leaves_out: whether a ``prediction_ratio`` may leave masked patches out.
        gate: whether the adapter takes ``gate=True``; one that does not must refuse it.
        row_major: whether visible tokens come in the grid's order, not in that of ``ids_keep``.
        decodes_in_order: whether the decoder gets all L patches in the order of the grid, and not
            in that of ``ids_shuffle``, which is that of the N + M where some are left out.
        decodes_all: whether the decoder gets all patches, also where some are left out, with mask
            tokens in the place of their content.
        bfloat16: whether the codebase's own model runs in bfloat16.
        masked_mean: whether the codebase's own loss is the mean error of the predicted patches.
        autocast: whether the codebase's own model runs under torch.autocast.
        keeps: attributes of the model that the adapter may change for good, by name.
    """

    name: str
    package: str
    prefix: int = 1
    image_size: tuple[int, ...] = (32, 32)
    patch_size: int | tuple[int, ...] = 8
    own_patch: int | None = None
    free_counts: bool = False
    leaves_out: bool = True
    gate: bool = False
    row_major: bool = False
    decodes_in_order: bool = True
    decodes_all: bool = False
    bfloat16: bool = True
    masked_mean: bool = True
    autocast: bool = True
    keeps: tuple[str, ...] = ()

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
        """One forward pass through the adapter, under the mask that ``masking`` makes.

        The model is left as it was, a strategy that was attached to it included.
        """
        raise NotImplementedError

    def stock_step(self, model: nn.Module, images: Tensor, noise: Tensor) -> Any:
        """``(tokens, loss)`` of the codebase's own random masking, made from ``(B, L)`` noise.

        At mask ratio 0.75; the patches of least noise stay visible. ``tokens`` as in
        :class:`Step`; ``loss`` the codebase's own, a scalar, or None where it has none. None
        altogether where the codebase has no random masking.
        """
        raise NotImplementedError


class Given(MaskingStrategy):
    """A strategy that gives one prepared mask, whatever the images."""

    def __init__(self, patch_size: int | tuple[int, ...], patch_mask: PatchMask) -> None:
        super().__init__(patch_size)
        self.patch_mask = patch_mask
        self.free_counts = patch_mask.visible_counts is not None

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        valid: Tensor | None = None,
    ) -> PatchMask:
        return self.patch_mask


@contextmanager
def seen_by(module: nn.Module, output: bool = False) -> Iterator[list[Any]]:
    """For the duration, collects what each call of a module is given first, or what it returns.

    What a decoder's first block gets is read at the norm inside it: hooks run in the order in which
    they were registered, and a hook of the adapter's on the block itself comes after this one.
    """
    seen: list[Any] = []
    if output:
        handle = module.register_forward_hook(lambda m, args, out: seen.append(out))
    else:
        handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
