"""What a kind of model is asked for, so that it runs under a mask made elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from amn_masking.mask import PatchMask
from amn_masking.strategies import MaskingStrategy

EQUAL_COUNTS = "keeps the same number of patches of every image"


class Interface:
    """One way of handing a mask to a model, and its error back; for one forward pass.

    Args:
        model: one that :meth:`serves` it.

    Attributes:
        argument: of the model's forward, by which the mask goes in.
        name: of the model's class, for messages.
    """

    argument: str

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.name = type(model).__name__

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        """Whether the module is a model of this kind."""
        if "decoder" not in module._modules:
            return False
        return {"pixel_values", cls.argument} <= set(inspect.signature(module.forward).parameters)

    def images_of(self, pixel_values: Tensor) -> Tensor:
        """What the model is given, as a strategy sees it: ``(B, C, H, W)``, or clips.

        Raises:
            ValueError: it is not of the model's shape.
        """
        return pixel_values

    def pixel_values_of(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`images_of`."""
        return images

    def check(self, strategy: MaskingStrategy | None) -> None:
        """Raise ValueError where the model, or the strategy on it, could not work.

        Args:
            strategy: None where the mask is made already.
        """
        raise NotImplementedError

    def check_mask(
        self,
        patch_mask: PatchMask,
        images: Tensor,
        strategy: MaskingStrategy | None,
        any_size: bool,
    ) -> None:
        """Raise ValueError where the mask is not one of the model's patches.

        Args:
            patch_mask: that of this pass.
            images: as a strategy sees them.
            strategy: as for :meth:`check`.
            any_size: whether the model is asked to interpolate its positions.
        """
        raise NotImplementedError

    def check_equal_counts(self, patch_mask: PatchMask) -> None:
        """Raise ValueError where the images mask different numbers of patches."""
        if patch_mask.visible_counts is not None:
            raise ValueError(
                f"{self.name} {EQUAL_COUNTS}, but those of this mask differ; use a strategy with "
                "threshold=dict(type='quantile')"
            )

    def hand_in(self, patch_mask: PatchMask, images: Tensor) -> Tensor:
        """What the argument has to be, so that the model masks what the mask says."""
        raise NotImplementedError

    def inside(self, patch_mask: Callable[[], PatchMask]) -> AbstractContextManager[None]:
        """For the duration of the pass, what the argument alone does not do.

        Args:
            patch_mask: gives the mask, once it is made.
        """
        raise NotImplementedError

    def error(self, outputs: Any, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """``(B, L)`` error of each patch of the mask, as the model's own loss measures it."""
        raise NotImplementedError
