"""Block masking: rectangles of patches."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from amn_masking.noise import uniform
from amn_masking.patches import times
from amn_masking.strategies.ranked import RankedMasking
from amn_masking.strategies.ratios import Ratio


class BlockMasking(RankedMasking):
    """Masks rectangles of random size, shape and place until the count is reached.

    Bao et al., "BEiT" (arXiv:2106.08254), algorithm 1, which stops at or above the ratio. Here the
    count is exact: the last rectangle is trimmed at patches drawn uniformly from it, and where all
    rectangles together are too few, the rest is filled at random. BEiT bounds a rectangle by what
    is left to mask; here its area is drawn anew each time, so that the images of a batch are
    made at once, without a loop.

    Clips take them as tubes: with patches as deep as the clip, ``patch_size=(frames, height,
    width)``, the rectangles are of its places (:class:`~amn_masking.strategies.TubeMasking`).

    Args:
        mask_ratio, patch_size, prediction_ratio: as in
            :class:`~amn_masking.strategies.MaskingStrategy`.
        min_patches: least area of a rectangle. The largest is the number of masked patches.
        min_aspect: least ratio of height to width, in (0, 1]; the largest is its inverse.

    Raises:
        ValueError: a value out of range, or patches of a signal; in ``forward``, a clip or volume
            of more than one patch in depth.

    Example:
        >>> import torch
        >>> BlockMasking(mask_ratio=0.5, patch_size=16)(torch.rand(2, 3, 64, 64)).mask.sum(1)
        tensor([8., 8.])
    """

    def __init__(
        self,
        mask_ratio: Ratio | None = None,
        patch_size: int | tuple[int, ...] = 16,
        min_patches: int = 16,
        min_aspect: float = 0.3,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__(mask_ratio, patch_size, prediction_ratio=prediction_ratio)
        if len(self.patch_size) == 1:
            raise ValueError(
                "BlockMasking masks rectangles of patches, of which a signal has none; expected a "
                f"patch_size of two numbers or three, got {self.patch_size}"
            )
        if min_patches < 1:
            raise ValueError(f"min_patches must be at least 1, got {min_patches}")
        if not 0 < min_aspect <= 1:
            raise ValueError(f"min_aspect must lie in (0, 1], got {min_aspect}")
        self.min_patches = min_patches
        self.min_aspect = min_aspect

    def priorities(self, images: Tensor, num_masked: int, generator: Generator | None) -> Tensor:
        """Minus the number of the first rectangle that covers a patch, and a tie-break."""
        batch, device, grid = images.shape[0], images.device, self.grid(images)
        *slots, height, width = grid
        if slots not in ([], [1]):
            tube = (images.shape[2], *self.patch_size[1:])
            raise ValueError(
                "BlockMasking masks rectangles of the places of a clip, and expected patches as "
                f"deep as the clip, got a grid of {times(grid)}; give it patch_size={tube}, and "
                "for an encoder of several time slots TubeMasking around it"
            )
        length = height * width
        least = min(self.min_patches, num_masked)
        # As many as cover the ratio if all were of the least area, and twice that.
        share = min(least / length, 0.99)
        blocks = 4 + math.ceil(2 * math.log(1 - num_masked / length) / math.log(1 - share))

        drawn = uniform((batch, blocks, 4), device, generator)
        area = least + drawn[..., 0] * (num_masked - least)
        aspect = torch.exp((2 * drawn[..., 1] - 1) * -math.log(self.min_aspect))
        tall = (area * aspect).sqrt().round().clamp(1, height)
        wide = (area / tall).round().clamp(1, width)
        top = (drawn[..., 2] * (height - tall + 1)).floor()
        left = (drawn[..., 3] * (width - wide + 1)).floor()

        rows = torch.arange(height, device=device)
        columns = torch.arange(width, device=device)
        in_rows = (rows >= top[..., None]) & (rows < (top + tall)[..., None])
        in_columns = (columns >= left[..., None]) & (columns < (left + wide)[..., None])
        covered = (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2)
        number = torch.arange(blocks, device=device).view(1, -1, 1).expand_as(covered)
        return -torch.where(covered, number, blocks).amin(1).to(torch.float32)
