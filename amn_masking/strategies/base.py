"""What every masking strategy is: a module from images to a :class:`PatchMask`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.patches import grid_size


class MaskingStrategy(nn.Module):
    """Makes a mask for a batch of images.

    Args:
        patch_size: side of a patch in pixels, or (height, width); the encoder's.

    Attributes:
        free_counts: whether images of one batch may mask different numbers of patches.
        loss: weighs what the strategy adds to a codebase's own loss; None if it learns nothing.

    Raises:
        ValueError: ``patch_size`` is not positive.
    """

    free_counts: bool = False
    loss: CombinedAdversarialLoss | None

    def __init__(self, patch_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.loss = None
        size = patch_size if isinstance(patch_size, Sequence) else (patch_size, patch_size)
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"patch_size must be one or two positive integers, got {patch_size!r}")
        self.patch_size: tuple[int, int] = (size[0], size[1])

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        """Make the mask.

        Args:
            images: ``(B, C, H, W)``.
            generator: source of all randomness, on the images' device; torch's global one if not
                given.

        Raises:
            ValueError: the images do not split into patches.
        """
        raise NotImplementedError

    def total_loss(self, reconstruction: Tensor, error: Tensor, patch_mask: PatchMask) -> Tensor:
        """A codebase's own loss with the adversarial terms of this strategy.

        Args:
            reconstruction: the loss as the codebase computes it, a scalar.
            error: ``(B, L)`` per-patch error, with the autoencoder's gradient; what it is at
                visible patches does not matter.
            patch_mask: the mask that both were made under.

        Returns:
            reconstruction + lambda_adv (A + objective), see :class:`CombinedAdversarialLoss`; the
            reconstruction itself from a strategy that learns nothing.

        Raises:
            ValueError: the error is not one number per patch of this mask.
        """
        if self.loss is None:
            return reconstruction
        adversarial, objective = self.loss.adversarial_terms(error, patch_mask)
        return reconstruction + self.loss.lambda_adv * (adversarial + objective)

    def set_progress(
        self, progress: float, iteration: float | None = None, epoch: float | None = None
    ) -> None:
        """Move the schedules, if there are any.

        mmpretrain's adapter calls it; elsewhere call it every step.

        Args:
            progress: share of the training that is done, in [0, 1].
            iteration: iterations that are done, for schedules ``by='iter'``.
            epoch: epochs that are done, in fractions, for schedules ``by='epoch'``.

        Raises:
            ValueError: a share outside [0, 1], or a schedule's count is missing.
        """

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches per column and per row of ``(B, C, H, W)`` images.

        Raises:
            ValueError: not four dimensions, or patches that do not tile the images.
        """
        if images.dim() != 4:
            raise ValueError(f"expected images of shape (B, C, H, W), got {tuple(images.shape)}")
        return grid_size(images.shape[2], images.shape[3], self.patch_size)

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}"
