"""``PatchMask``: what a masking strategy gives and what a masked autoencoder takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amn_masking import tokens
from amn_masking.checks import check_grid_of, check_tensor
from amn_masking.counts import longest_row
from amn_masking.patches import (
    SHAPES,
    fill_invalid,
    grid_size,
    patch_sides,
    pool_to_patches,
    spread_to_pixels,
    times,
)
from amn_masking.tubes import tubes_of

if TYPE_CHECKING:
    from amn_masking.learned import LearnedMask


def invert_permutation(ids: Tensor) -> Tensor:
    """Inverse of each row's permutation; ``(B, L)`` integers in, ``(B, L)`` integers out."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.empty_like(ids).scatter_(1, ids, positions)


@dataclass(eq=False)
class PatchMask:
    """A mask over the patches of a batch of images. 1 = masked, 0 = visible (MAE's polarity).

    Attributes:
        mask: ``(B, L)`` float32, exactly 0 or 1, no gradient.
        ids_shuffle: ``(B, L)`` int64, a permutation of the patches; the visible ones come first.
        ids_restore: ``(B, L)`` int64, its inverse.
        num_visible: visible tokens per row, N. With unequal counts, the longest row's.
        grid: (rows, columns) of patches, ``rows * columns == L``; of a signal (patches,), of a clip
            or volume (slots, rows, columns). Patches are in row-major order.
        visible_counts: ``(B,)`` int64 visible tokens of each image where they differ, else None.
        valid: ``(B, L)`` bool, False at patches without data, which are never masked; None if
            every patch is valid.
        learned: what a learning strategy made beside the mask; None if nothing is learned.
        num_predicted: masked patches of each image that are predicted, P; the others are left out:
            no one sees them and no one predicts them. In ``ids_shuffle`` the predicted come before
            the left out. None where a ``prediction_ratio`` was not asked for: all are predicted.
        slots: time slots that are masked alike, of :meth:`tubes`; 1 of any other mask.

    Example:
        >>> import torch
        >>> patch_mask = PatchMask.from_mask(torch.tensor([[1, 0, 0, 1]]))
        >>> patch_mask.ids_keep
        tensor([[1, 2]])
        >>> tokens = torch.arange(4.0).reshape(1, 4, 1)
        >>> visible = patch_mask.gather_visible(tokens)
        >>> patch_mask.scatter(visible, torch.tensor([-1.0])).flatten()
        tensor([-1.,  1.,  2., -1.])
    """

    mask: Tensor
    ids_shuffle: Tensor
    ids_restore: Tensor
    num_visible: int
    grid: tuple[int, ...]
    visible_counts: Tensor | None = None
    valid: Tensor | None = None
    learned: LearnedMask | None = None
    num_predicted: int | None = None
    slots: int = 1

    @classmethod
    def from_shuffle(
        cls,
        ids_shuffle: Tensor,
        num_visible: int,
        grid: tuple[int, ...],
        visible_counts: Tensor | None = None,
        valid: Tensor | None = None,
        num_predicted: int | None = None,
    ) -> PatchMask:
        """The mask that keeps the first patches of each row of ``ids_shuffle``, ``(B, L)`` int64, a
        permutation of ``0..L-1``; the arguments are as the attributes.
        """
        ids_restore = invert_permutation(ids_shuffle)
        first_masked = num_visible if visible_counts is None else visible_counts[:, None]
        mask = (ids_restore >= first_masked).to(torch.float32)
        return cls(
            mask, ids_shuffle, ids_restore, num_visible, grid, visible_counts, valid,
            num_predicted=num_predicted,
        )  # fmt: skip

    @classmethod
    def in_order(
        cls,
        hidden: Tensor,
        num_visible: int,
        grid: tuple[int, ...],
        visible_counts: Tensor | None = None,
        valid: Tensor | None = None,
        predicted: Tensor | None = None,
        num_predicted: int | None = None,
    ) -> PatchMask:
        """The mask of ``hidden``, ``(B, L)`` bool, True = masked, of the counts that the other
        arguments, as the attributes, say; ``predicted`` is bool. The visible patches, after them
        the predicted and last those that are left out, are in the order of the grid each; found by
        counting, without a sort.
        """
        first_masked = num_visible if visible_counts is None else visible_counts[:, None]
        shown = ~hidden
        first = hidden if predicted is None else predicted
        ids_restore = torch.where(shown, shown.cumsum(1) - 1, first_masked - 1 + first.cumsum(1))
        if predicted is not None and num_predicted is not None:
            left_out = hidden & ~predicted
            last = num_visible + num_predicted - 1 + left_out.cumsum(1)
            ids_restore = torch.where(left_out, last, ids_restore)
        ids_shuffle, mask = invert_permutation(ids_restore), hidden.to(torch.float32)
        return cls(
            mask, ids_shuffle, ids_restore, num_visible, grid, visible_counts, valid,
            num_predicted=num_predicted,
        )  # fmt: skip

    @classmethod
    def from_mask(cls, mask: Tensor, grid: tuple[int, ...] | None = None) -> PatchMask:
        """Wrap a mask made elsewhere. An image may have no masked patch: it is shown as a whole,
        and has no part in a loss.

        Args:
            mask: ``(B, L)`` with ``grid``, or ``(B, h, w)``, or ``(B, d, h, w)``; bool or 0/1, 1 =
                masked.
            grid: (rows, columns) of patches, ``(L,)`` of a signal. May be left out where ``(B, L)``
                is of a square.

        Raises:
            TypeError: not a tensor.
            ValueError: wrong shape, values other than 0 and 1, or an image with no visible patch.
        """
        check_tensor(mask, "mask")
        if mask.dim() in (3, 4) and grid in (None, tuple(mask.shape[1:])):
            grid, mask = tuple(mask.shape[1:]), mask.flatten(1)
        length = mask.shape[-1]
        if grid is None:
            grid = (math.isqrt(length), math.isqrt(length))
        if mask.dim() != 2 or not 1 <= len(grid) <= 3 or math.prod(grid) != length:
            raise ValueError(
                f"a mask of shape {tuple(mask.shape)} does not fill a grid of {times(grid)}; "
                "expected (B, L) or (B, h, w) or (B, d, h, w), the first with grid=(rows, columns) "
                "unless its L patches form a square"
            )
        hard = mask.to(torch.float32)
        if not bool(((hard == 0) | (hard == 1)).all()):
            raise ValueError("expected a mask of 0 (visible) and 1 (masked), got other values")
        counts = length - hard.sum(1).long()
        if bool((counts == 0).any()):
            raise ValueError(
                f"each image needs at least one visible patch of its {length}, got visible counts "
                f"{counts.tolist()}"
            )
        num_visible, visible_counts = longest_row(counts)
        return cls.in_order(hard.bool(), num_visible, tuple(grid), visible_counts)

    @classmethod
    def from_pixels(cls, mask: Tensor, patch_size: int | tuple[int, ...]) -> PatchMask:
        """Wrap a mask of pixels, the inverse of :meth:`pixel_mask`.

        Args:
            mask: ``(B, H, W)`` or ``(B, 1, H, W)``; bool or 0/1, 1 = masked. Of signals and volumes
                with as many axes as ``patch_size`` has numbers.
            patch_size: side of a patch in pixels, or a tuple of its sides.

        Raises:
            TypeError: not a tensor.
            ValueError: wrong shape, or a patch of which some pixels are masked and others are not.
        """
        check_tensor(mask, "mask")
        size = patch_sides(patch_size)
        mask = mask[:, None] if mask.dim() == len(size) + 1 else mask
        if mask.dim() != len(size) + 2 or mask.shape[1] != 1:
            axes = SHAPES[len(size)].removeprefix("(B, C, ")
            raise ValueError(
                f"expected a mask of shape (B, {axes} or (B, 1, {axes}, got {tuple(mask.shape)}"
            )
        grid = grid_size(mask.shape[2:], size)
        share = pool_to_patches(mask.to(torch.float32), grid, "a mask")
        if not bool(((share == 0) | (share == 1)).all()):
            raise ValueError(
                f"expected patches of {times(size)} pixels that are masked as a whole or "
                "not at all, got some that are masked in part; give PatchMask.from_mask a mask of "
                "the patches, such as those with more than half of their pixels masked"
            )
        return cls.from_mask(share, grid)

    @property
    def num_patches(self) -> int:
        """Patches per image, L."""
        return self.mask.shape[1]

    @property
    def num_left_out(self) -> int:
        """Masked patches of each image that are not predicted."""
        if self.num_predicted is None:
            return 0
        return self.num_patches - self.num_visible - self.num_predicted

    @property
    def masks_nothing(self) -> bool:
        """Whether no patch of the batch is masked, so that there is no error to speak of.

        Reads one number back to the host where an image without a masked patch is among others.
        """
        counts = self.visible_counts
        if self.num_visible < self.num_patches or counts is None:
            return self.num_visible == self.num_patches
        return bool((counts == self.num_patches).all())  # also after take()

    @property
    def predicted(self) -> Tensor:
        """``(B, L)`` float32, 1 at the patches that are predicted: masked and not left out."""
        return self.mask if self.num_left_out == 0 else self.mask * self._not_left_out

    @property
    def counted(self) -> Tensor | None:
        """``(B, L)`` bool, False where there is no data or no prediction; None for all patches."""
        if self.num_left_out == 0:
            return self.valid
        return self._not_left_out if self.valid is None else self._not_left_out & self.valid

    @property
    def _not_left_out(self) -> Tensor:
        return self.ids_restore < self.num_patches - self.num_left_out

    @property
    def ids_keep(self) -> Tensor:
        """``(B, N)`` int64, the visible patches. Where counts differ, see :attr:`padding`."""
        return self.ids_shuffle[:, : self.num_visible]

    @property
    def ids_mask(self) -> Tensor:
        """``(B, L - N)`` int64, the masked patches.

        Raises:
            ValueError: the images mask different numbers of patches; use ``mask``.
        """
        if self.visible_counts is not None:
            raise ValueError(
                "ids_mask is a rectangle, but the images of this batch mask different numbers of "
                "patches; use PatchMask.mask, or a threshold with equal counts (type='quantile')"
            )
        return self.ids_shuffle[:, self.num_visible :]

    @property
    def padding(self) -> Tensor | None:
        """``(B, N)`` bool, True where ``ids_keep`` is padding; None if all counts are equal."""
        if self.visible_counts is None:
            return None
        positions = torch.arange(self.num_visible, device=self.mask.device)
        return positions[None, :] >= self.visible_counts[:, None]

    @property
    def gate(self) -> bool:
        """Whether :meth:`gather_visible` lets a gradient to the masking network through."""
        return self.learned is not None and self.learned.gate

    # Methods, each written beside its own kind.
    gather_visible = tokens.gather_visible
    scatter = tokens.scatter
    gather_decoded = tokens.gather_decoded
    scatter_decoded = tokens.scatter_decoded
    check_grid = check_grid_of
    tubes = tubes_of

    def pixel_mask(self, *size: int) -> Tensor:
        """``(B, 1, height, width)`` float32, 1 = masked: the mask at the size of an image.

        Args:
            size: ``height, width``, or as many numbers as the grid has dimensions.

        Raises:
            ValueError: the grid does not divide that size.
        """
        return spread_to_pixels(self.mask, self.grid, *size)

    def apply(self, images: Tensor, fill: float | Tensor = 0.0) -> Tensor:
        """The specification's ``apply_mask``: masked pixels replaced by ``fill``.

        Args:
            images: ``(B, C, H, W)``.
            fill: a number or a tensor that broadcasts to the images.
        """
        hidden = self.pixel_mask(*images.shape[2:]).bool()
        return torch.where(hidden, torch.as_tensor(fill).to(images), images)

    def fill_invalid(self, values: Tensor) -> Tensor:
        """``(B, C, H, W)`` images or ``(B, L, D)`` patches, with 0 where they are not valid; on a
        grid of one dimension three axes are a signal's, ``(B, C, T)``.

        So NaN, which often stands for no data, reaches neither the encoder nor the target.

        Raises:
            ValueError: on a grid of one dimension, what may be a signal or its patches.
        """
        if len(self.grid) == 1 and self.valid is not None and values.shape[1] == self.num_patches:
            raise ValueError(
                f"a signal of {self.num_patches} channels and its {self.num_patches} patches "
                "cannot be told apart; for the signal patches.fill_invalid(signal, valid, grid), "
                "for its patches values.where(valid[:, :, None], 0)"
            )
        return fill_invalid(values, self.valid, self.grid)

    def take(self, images: Tensor) -> PatchMask:
        """The masks of some images of the batch, in the order of ``images``, ``(M,)`` int64.

        A threshold that learns from errors hears of a mask once: of the part whose loss is first.
        """
        return self._changed(lambda value: value[images], lambda learned: learned.take(images))

    def to(self, device: torch.device | str) -> PatchMask:
        """The same mask on another device."""
        return self._changed(lambda value: value.to(device), lambda learned: learned.to(device))

    def detach(self) -> PatchMask:
        """The same mask without gradients: the masking network learns nothing from it."""
        return replace(self, learned=None if self.learned is None else self.learned.detach())

    def _changed(
        self,
        change: Callable[[Tensor], Tensor],
        change_learned: Callable[[LearnedMask], LearnedMask],
    ) -> PatchMask:
        return replace(
            self,
            mask=change(self.mask),
            ids_shuffle=change(self.ids_shuffle),
            ids_restore=change(self.ids_restore),
            visible_counts=None if self.visible_counts is None else change(self.visible_counts),
            valid=None if self.valid is None else change(self.valid),
            learned=None if self.learned is None else change_learned(self.learned),
        )
