"""Patches without data: where a batch says them, and what the method is shown of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from amn_masking.mask import PatchMask


def valid_of(samples: Sequence[DataSample], images: Tensor) -> Tensor | None:
    """The field ``valid`` of the data samples, on the images' device; None if none has it.

    Args:
        samples: each with ``valid``, ``(H, W)`` pixels or ``(L,)`` patches, bool, True where there
            is data; a tensor or an array.
        images: ``(B, C, H, W)``, of these samples.

    Returns:
        ``(B, H, W)`` or ``(B, L)``, as a :class:`MaskingStrategy` takes it.

    Raises:
        ValueError: some samples have it and others do not, or of another shape.
    """
    found = [sample.get("valid") for sample in samples]
    if all(valid is None for valid in found):
        return None
    shapes = {None if valid is None else tuple(valid.shape) for valid in found}
    if len(shapes) > 1:
        raise ValueError(
            "the field 'valid' of the data samples expected one shape, (H, W) or (L,), in all "
            f"samples of a batch, got {sorted(map(str, shapes))}; set it in every sample, all True "
            "where an image has no hole"
        )
    return torch.stack([torch.as_tensor(valid, device=images.device) for valid in found])


def fill_invalid(inputs: Tensor | list[Tensor], patch_mask: PatchMask) -> Tensor | list[Tensor]:
    """The method's inputs, each view of them with 0 in the patches that are not valid."""
    if isinstance(inputs, Tensor):
        return patch_mask.fill_invalid(inputs)
    return [patch_mask.fill_invalid(view) for view in inputs]
