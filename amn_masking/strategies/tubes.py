"""Tubes of another strategy's making: every time slot of a clip is masked alike."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from amn_masking.checks import check_tensor
from amn_masking.mask import PatchMask
from amn_masking.strategies.base import MaskingStrategy
from amn_masking.strategies.wrapped import WrappedMasking


class TubeMasking(WrappedMasking):
    """Another strategy's mask of the places of a clip, repeated in each of the encoder's time
    slots.

    Tong et al., "VideoMAE" (arXiv:2203.12602), whose tubes are random. See
    :meth:`PatchMask.tubes` for what becomes of the mask, and of what
    a learning strategy made beside it. To an encoder, and to its adapter, it is a strategy of the
    encoder's own patches: ``patch_size`` is (frames of a slot, height, width), and ``valid`` is of
    these patches or of pixels. A tube of which any slot is not valid is not valid.

    Args:
        masking: the strategy, one's own too, of patches as deep as the clip:
            ``patch_size=(frames, height, width)``. Its ratios count tubes; its prediction_ratio
            leaves out whole ones.
        slots: time slots of the encoder: the clip's frames over those of one of its patches. 8 is
            VideoMAE's, 16 frames in patches of 2.

    Raises:
        ValueError: a strategy of signals or images, or slots that do not divide its frames; in
            ``forward``, clips of another number of frames.

    Example:
        >>> import torch
        >>> from amn_masking import AdversarialMasking
        >>> masking = TubeMasking(AdversarialMasking(0.75, patch_size=(16, 16, 16)), slots=8)
        >>> masking.patch_size
        (2, 16, 16)
        >>> patch_mask = masking(torch.rand(2, 3, 16, 64, 64))
        >>> patch_mask.grid, patch_mask.mask.sum(1)
        ((8, 4, 4), tensor([96., 96.]))
    """

    def __init__(self, masking: MaskingStrategy | None = None, slots: int = 8) -> None:
        super().__init__(masking)
        if len(self.masking.patch_size) != 3:
            raise ValueError(
                "TubeMasking expected a strategy of patches as deep as the clip, patch_size="
                f"(frames, height, width), got {self.masking.patch_size}; give the strategy that "
                "patch_size, BlockMasking too"
            )
        frames = self.masking.patch_size[0]
        if type(slots) is not int or slots < 1 or frames % slots:
            raise ValueError(
                f"TubeMasking expected a number of time slots that divides the {frames} frames of "
                f"its strategy's patch_size={self.masking.patch_size}, got slots={slots!r}; it is "
                "the clip's frames over those of one of the encoder's patches"
            )
        self.slots = slots

    @property
    def patch_size(self) -> tuple[int, ...]:  # type: ignore[override]
        """(frames of a slot, height, width): the encoder's."""
        frames, *places = self.masking.patch_size
        return frames // self.slots, *places

    def grid(self, images: Tensor) -> tuple[int, ...]:
        """(slots, rows, columns) of ``(B, C, D, H, W)`` clips.

        Raises:
            TypeError, ValueError: as any strategy's; clips that are not as deep as its patches.
        """
        check_tensor(images, "images")
        frames = self.masking.patch_size[0]
        if images.dim() == 5 and images.shape[2] != frames:
            raise ValueError(
                f"TubeMasking masks clips of {frames} frames, as deep as its strategy's patches, "
                f"and expected (B, C, {frames}, H, W), got {tuple(images.shape)}; give the "
                "strategy patch_size=(frames, height, width) of these clips, and put the frames "
                "behind the channels"
            )
        return self.slots, *self.masking.grid(images)[1:]

    def require(
        self, host: str, patch_size: tuple[int, ...] | None = None, *args: Any, **options: Any
    ) -> None:
        if patch_size is not None and self.patch_size != tuple(patch_size):
            remedy = (
                "give TubeMasking its number of time slots, and the strategy within the clip's "
                "frames and its height and width"
                if len(patch_size) == 3
                else f"leave TubeMasking out and give the strategy patch_size={tuple(patch_size)}"
            )
            raise ValueError(
                f"masking has patch_size={self.patch_size}, {self.masking.patch_size} in "
                f"{self.slots} slots, but {host} works on patches of {tuple(patch_size)} pixels; "
                f"{remedy}"
            )
        super().require(host, None, *args, **options)

    def check_counts(self, num_patches: int, *ratios: float) -> None:
        self.masking.check_counts(num_patches // self.slots, *ratios)

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        self.grid(images)
        valid = self.valid_patches(valid, images)
        if valid is not None:
            valid = valid.unflatten(1, (self.slots, -1)).all(1)
        return self.other_mask(images, generator, valid).tubes(self.slots)
