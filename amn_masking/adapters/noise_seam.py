"""The one call that nearly every masked autoencoder makes its mask by: ``argsort(rand(B, L))``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from amn_masking.mask import PatchMask


class NoiseSeam(TorchFunctionMode):
    """While it is on, ``torch.rand`` of shape ``(B, L)`` answers with the rank of each patch.

    A model that keeps the patches of least noise then keeps the visible ones, in their order: its
    ``argsort`` of the noise is the mask's ``ids_shuffle``, and that of the result its
    ``ids_restore``.

    Attributes:
        answered: how many calls were answered.

    Raises:
        ValueError: inside, from such a call: of a type in which ranks would tie, or with ``out=``.
    """

    def __init__(self, patch_mask: PatchMask) -> None:
        super().__init__()
        self.ranks = patch_mask.ids_restore
        self.answered = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand:
            size = kwargs.get("size", args[0] if len(args) == 1 else args)
            if isinstance(size, (tuple, list)) and tuple(size) == tuple(self.ranks.shape):
                self.answered += 1
                dtype = kwargs.get("dtype") or torch.get_default_dtype()
                if (
                    self.ranks.shape[1] > 2 / torch.finfo(dtype).eps
                    or kwargs.get("out") is not None
                ):
                    raise ValueError(
                        f"the order of {self.ranks.shape[1]} patches expected noise of a type that "
                        f"tells them apart, such as float32, and no out=, got {dtype}"
                    )
                return self.ranks.to(kwargs.get("device") or self.ranks.device, dtype)
        return func(*args, **kwargs)


@contextmanager
def noise_answered(patch_mask: PatchMask, name: str) -> Iterator[None]:
    """For the duration, a model that masks by sorting noise makes this mask.

    Its ratio has to keep as many patches as the mask shows: :func:`ratio_of`. Check the mask that
    comes out against ``patch_mask.mask``: a model may have drawn its mask by another call.

    Args:
        patch_mask: with equal counts.
        name: of the model, for the message.

    Raises:
        ValueError: the model did not draw uniform noise of shape ``(B, L)`` exactly once.
    """
    with NoiseSeam(patch_mask) as seam:
        yield
    if seam.answered != 1:
        raise ValueError(
            f"{name} was expected to call torch.rand({', '.join(map(str, seam.ranks.shape))}) "
            f"once, to sort it into a mask, but called it {seam.answered} times; it masks in "
            "another way, so give it the mask where it makes its own: override that method "
            "and return patch_mask.gather_visible(tokens), patch_mask.mask and "
            "patch_mask.ids_restore"
        )


def ratio_of(patch_mask: PatchMask) -> float:
    """A mask ratio at which ``int(L * (1 - ratio))`` is the mask's count of visible patches,
    half a patch away from where rounding could change it.
    """
    return 1 - (patch_mask.num_visible + 0.5) / patch_mask.num_patches
