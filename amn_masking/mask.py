"""``PatchMask``: what a masking strategy gives and what a masked autoencoder takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def invert_permutation(ids: Tensor) -> Tensor:
    """Inverse of each row's permutation; ``(B, L)`` integers in, ``(B, L)`` integers out."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.empty_like(ids).scatter_(1, ids, positions)


def longest_row(visible_counts: Tensor) -> tuple[int, Tensor | None]:
    """The largest count, and the counts themselves, or None where all are equal.

    Reads the counts, ``(B,)``, back to the host: free counts cost one synchronisation.
    """
    least, most = torch.aminmax(visible_counts)
    smallest, largest = torch.stack([least, most]).tolist()
    return largest, None if smallest == largest else visible_counts


@dataclass(eq=False)
class PatchMask:
    """A mask over the patches of a batch of images. 1 = masked, 0 = visible (MAE's polarity).

    Attributes:
        mask: ``(B, L)`` float32, exactly 0 or 1, no gradient.
        surrogate: ``(B, L)`` float32, equal to ``mask`` bit for bit. Its gradient is the
            estimator's, with the adversary's reversal already applied: minimising any loss of
            the surrogate trains the masking network to *raise* it (at strength +1).
        ids_shuffle: ``(B, L)`` int64, a permutation of the patches; the visible ones come first.
        ids_restore: ``(B, L)`` int64, its inverse.
        num_visible: visible tokens per row, N. With unequal counts, the longest row's.
        grid: patches per column and per row, ``(h, w)``, ``h * w == L``.
        visible_counts: ``(B,)`` int64 visible tokens of each image where they differ, else None.
        logits: ``(B, L)`` the patch logits that the mask came from, carrying the (reversed)
            gradient to the masking network; None if nothing is learned. Larger is masked first.
        patch_scores: ``(B, L)`` in (0, 1), mean of the score map over each patch, no gradient.
        score_map: ``(B, 1, H/d, W/d)`` in (0, 1), no gradient; ``d`` is the network's downsample.
        threshold: ``(B,)`` float32, each image's tau on the scale of ``scores``.
        random: ``(B, L)`` bool, True at masked patches drawn at random (``random_share``).
        reward_scale: ``(B, L)`` float32, > 0, what the image's errors are divided by where they
            reward the masking network; None for the errors themselves. Of the image, not of the
            mask.
        entropy: ``(B,)`` in [0, 1], of the logits, with a gradient that is *not* reversed; None
            where no objective wants it.
        objective: the estimator's: takes the per-patch error ``(B, L)`` and this mask, gives a
            scalar of value 0 whose gradient, reversed, reaches the masking network.
        gate: whether :meth:`gather_visible` lets the gradient through visible tokens.
    """

    mask: Tensor
    surrogate: Tensor
    ids_shuffle: Tensor
    ids_restore: Tensor
    num_visible: int
    grid: tuple[int, int]
    visible_counts: Tensor | None = None
    logits: Tensor | None = None
    patch_scores: Tensor | None = None
    score_map: Tensor | None = None
    threshold: Tensor | None = None
    random: Tensor | None = None
    reward_scale: Tensor | None = None
    entropy: Tensor | None = None
    objective: Callable[[Tensor, PatchMask], Tensor] | None = None
    gate: bool = False

    @classmethod
    def from_shuffle(
        cls,
        ids_shuffle: Tensor,
        num_visible: int,
        grid: tuple[int, int],
        visible_counts: Tensor | None = None,
    ) -> PatchMask:
        """The mask that keeps the first patches of each row of ``ids_shuffle``.

        Args:
            ids_shuffle: ``(B, L)`` int64, a permutation of ``0..L-1`` in each row.
            num_visible: how many stay visible, the largest of ``visible_counts`` if given.
            grid: patches per column and per row.
            visible_counts: ``(B,)`` int64 where the images keep different numbers.
        """
        ids_restore = invert_permutation(ids_shuffle)
        first_masked = num_visible if visible_counts is None else visible_counts[:, None]
        mask = (ids_restore >= first_masked).to(torch.float32)
        return cls(mask, mask, ids_shuffle, ids_restore, num_visible, grid, visible_counts)

    @classmethod
    def from_mask(cls, mask: Tensor, grid: tuple[int, int] | None = None) -> PatchMask:
        """Wrap a mask made elsewhere.

        Args:
            mask: ``(B, L)``, or ``(B, h, w)`` which also gives the grid; bool or 0/1, 1 = masked.
            grid: patches per column and per row; a square one is assumed if it is not given.

        Raises:
            ValueError: wrong shape, values other than 0 and 1, or an image with no visible or no
                masked patch.
        """
        if mask.dim() == 3:
            grid = (mask.shape[1], mask.shape[2])
            mask = mask.flatten(1)
        if mask.dim() != 2:
            raise ValueError(
                f"expected a mask of shape (B, L) or (B, h, w), got {tuple(mask.shape)}"
            )
        length = mask.shape[1]
        if grid is None:
            side = math.isqrt(length)
            grid = (side, side)
        if grid[0] * grid[1] != length:
            raise ValueError(
                f"a mask over {length} patches does not fill a grid of {grid[0]} x {grid[1]}; "
                "pass grid=(h, w) with h * w equal to the number of patches"
            )
        hard = mask.to(torch.float32)
        if not bool(((hard == 0) | (hard == 1)).all()):
            raise ValueError("expected a mask of 0 (visible) and 1 (masked), got other values")
        counts = length - hard.sum(1).long()
        if bool(((counts == 0) | (counts == length)).any()):
            raise ValueError(
                f"each image needs at least one visible and one masked patch of its {length}, "
                f"got visible counts {counts.tolist()}"
            )
        ids_shuffle = torch.argsort(hard, dim=1, stable=True)
        num_visible, visible_counts = longest_row(counts)
        return cls.from_shuffle(ids_shuffle, num_visible, grid, visible_counts)

    @property
    def scores(self) -> Tensor | None:
        """``(B, L)`` in (0, 1): sigmoid of the patch logits, no gradient; None if not learned."""
        return None if self.logits is None else torch.sigmoid(self.logits.detach())

    @property
    def num_patches(self) -> int:
        """Patches per image, L."""
        return self.mask.shape[1]

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

    def gather_visible(self, tokens: Tensor) -> Tensor:
        """Keep the visible tokens.

        Args:
            tokens: ``(B, L, D)``, without prefix tokens.

        Returns:
            ``(B, N, D)``. Padding rows are 0. With ``gate`` the tokens are multiplied by
            1 - surrogate: exactly 1 in value, a gradient to the masking network.

        Raises:
            ValueError: the tokens are not one per patch of this mask.
        """
        if tokens.dim() != 3 or tokens.shape[:2] != self.mask.shape:
            raise ValueError(
                f"expected tokens of shape (B, L, D) = ({self.mask.shape[0]}, "
                f"{self.num_patches}, D) for a {self.grid[0]} x {self.grid[1]} grid, got "
                f"{tuple(tokens.shape)}; does the strategy's patch_size match the encoder's, and "
                "were prefix tokens taken off first?"
            )
        ids = self.ids_keep
        visible = tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))
        if self.gate:
            visible = visible * (1 - self.surrogate.gather(1, ids))[:, :, None].to(visible.dtype)
        if (padding := self.padding) is not None:
            visible = visible.masked_fill(padding[:, :, None], 0)
        return visible

    def scatter(self, visible: Tensor, mask_token: Tensor) -> Tensor:
        """Put visible tokens back in place and a mask token everywhere else.

        Args:
            visible: ``(B, N, D)``, as :meth:`gather_visible` orders them.
            mask_token: ``(D,)`` or any shape that broadcasts to ``(B, L, D)``.

        Returns:
            ``(B, L, D)``.
        """
        batch, _, dim = visible.shape
        filler = mask_token.to(visible.dtype)
        if (padding := self.padding) is not None:
            visible = torch.where(padding[:, :, None], filler, visible)
        rest = filler.expand(batch, self.num_patches - self.num_visible, dim)
        tokens = torch.cat([visible, rest], dim=1)
        return tokens.gather(1, self.ids_restore[:, :, None].expand(-1, -1, dim))

    def pixel_mask(self, height: int, width: int) -> Tensor:
        """``(B, 1, height, width)`` float32, 1 = masked: the mask at the size of an image.

        Raises:
            ValueError: the grid does not divide that size.
        """
        h, w = self.grid
        if height % h or width % w:
            raise ValueError(
                f"an image of {height} x {width} pixels does not split into this mask's grid of "
                f"{h} x {w} patches"
            )
        mask = self.mask.reshape(-1, 1, h, w)
        return mask.repeat_interleave(height // h, 2).repeat_interleave(width // w, 3)

    def apply(self, images: Tensor, fill: float | Tensor = 0.0) -> Tensor:
        """The specification's ``apply_mask``: masked pixels replaced by ``fill``.

        Args:
            images: ``(B, C, H, W)``.
            fill: a number or a tensor that broadcasts to the images.
        """
        hidden = self.pixel_mask(*images.shape[-2:]).bool()
        return torch.where(hidden, torch.as_tensor(fill).to(images), images)

    def detach(self) -> PatchMask:
        """The same mask without gradients."""
        logits = None if self.logits is None else self.logits.detach()
        entropy = None if self.entropy is None else self.entropy.detach()
        return replace(self, surrogate=self.mask, logits=logits, entropy=entropy)
