"""What every masking strategy is: a module from images to a :class:`PatchMask`."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from amn_masking.checks import check_tensor
from amn_masking.config import settings
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.mask import PatchMask
from amn_masking.patches import SHAPES, grid_size, patch_sides
from amn_masking.schedules import Schedule
from amn_masking.strategies.ratios import Ratio, RatioMixin, predict_part
from amn_masking.watch import TrainingWatch

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class MaskingStrategy(RatioMixin, nn.Module):
    """Makes a mask for a batch of images.

    One's own is a subclass with a ``forward``; see also
    :class:`~amn_masking.strategies.ranked.RankedMasking`, which needs only an order of the patches.

    Args:
        patch_size: side of a patch in pixels, or (height, width); the encoder's. A tuple of one
            number for signals ``(B, C, T)``, of three for volumes, or clips whose first axis are
            frames, ``(B, C, D, H, W)``; the grid has as many dimensions.
        mask_ratio: share of the patches to mask, in (0, 1): a number, or a schedule such as
            ``dict(type='linear', start=0.25, end=0.75)``. By default MAE's 0.75, or in mmpretrain
            the method's own.
        prediction_ratio: share of the patches to predict, at most ``mask_ratio``: a number or a
            schedule. The other masked ones are left out: neither seen nor predicted, so that a step
            is cheaper. The predicted are a uniform part of the masked; a strategy that chooses by
            the image's content chooses them, and the left-out are a uniform part of the others. By
            default all that is masked is predicted.

    Attributes:
        takes_ratio: whether it follows ``mask_ratio``; one's own says so where it does.
        mask_ratio: the share now; None where it takes none. It may be set to a number or a schedule
            at any time.
        prediction_ratio: the share to predict now, which may be set likewise; None for all masked.
        own_ratio: whether the user set it, so that ``default_ratio`` does not count.
        default_ratio: the share until then; a codebase sets it to its own.
        free_counts: whether images of one batch may mask different numbers of patches.
        gate: whether visible tokens carry a gradient to the masking network.
        loss: weighs what the strategy adds to a codebase's own loss; None if it learns nothing.
        reward: what a masked patch rewards, where the strategy learns: ``'error'`` or
            ``'variance_normalised'``.
        own_loss: whether the user set these weights, so that no other loss may add the terms.
        schedules: each number that may move, by name.

    Raises:
        ValueError: ``patch_size`` is not positive, a ratio outside (0, 1), or given to a strategy
            that takes none; more predicted than masked; a ``prediction_ratio`` of free counts.

    Example:
        >>> import torch
        >>> class LeftHalf(MaskingStrategy):
        ...     def forward(self, images, generator=None, valid=None):
        ...         rows, columns = self.grid(images)
        ...         hidden = torch.arange(columns) < columns // 2
        ...         return PatchMask.from_mask(hidden.expand(len(images), rows, columns))
        >>> LeftHalf(patch_size=16)(torch.rand(1, 3, 32, 64)).mask.reshape(2, 4)
        tensor([[1., 1., 0., 0.],
                [1., 1., 0., 0.]])
    """

    gate: bool = False
    reward: str = "error"
    own_loss: bool = False
    loss: CombinedAdversarialLoss | None

    def __init__(
        self,
        patch_size: int | tuple[int, ...] = 16,
        mask_ratio: Ratio | None = None,
        *,
        prediction_ratio: Ratio | None = None,
    ) -> None:
        super().__init__()
        self.loss = None
        self.told_of_progress = False
        self.watch = TrainingWatch()
        self.patch_size = patch_sides(patch_size)
        self.schedules: dict[str, Schedule] = {}
        self.progress: tuple[float, float | None, float | None] = (0.0, 0, 0)
        self.register_forward_hook(predict_part, with_kwargs=True)  # type: ignore[type-var]
        self.set_ratios(mask_ratio, prediction_ratio)

    def forward(
        self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
    ) -> PatchMask:
        """Make the mask.

        Args:
            images: ``(B, C, H, W)``, or of the dimensions of ``patch_size``, normalised as the
                encoder sees them.
            generator: source of all randomness, on the images' device; torch's global one if not
                given.
            valid: ``(B, L)`` patches or ``(B, H, W)`` pixels, all axes but the channels; bool,
                False where there is no data (a satellite's nodata, a scan's padding). A patch with
                a pixel without data is not valid: it is never masked and never in a loss. Where the
                count is fixed, an image with no more valid patches than are to be masked is
                refused: take a lower ratio, or a threshold with free counts, which masks fewer
                there.

        Raises:
            TypeError: images or ``valid`` are no tensors, or images are integers.
            ValueError: the images do not split into patches, or too few of them are valid.
        """
        raise NotImplementedError

    if TYPE_CHECKING:  # an editor then knows what masking(images) is

        def __call__(
            self, images: Tensor, generator: Generator | None = None, valid: Tensor | None = None
        ) -> PatchMask: ...

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
            TypeError: ``patch_mask`` is not a PatchMask.
            ValueError: the error is not one number per patch of this mask.
        """
        if not isinstance(patch_mask, PatchMask):
            raise TypeError(
                "total_loss expected the PatchMask that the strategy made, which trains its "
                f"network, got {type(patch_mask).__name__}"
            )
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
            progress: share of the training that is done. Outside [0, 1] the nearest end counts,
                with one warning.
            iteration: iterations that are done, for schedules ``by='iter'``.
            epoch: epochs that are done, in fractions, for schedules ``by='epoch'``.

        Raises:
            TypeError: what is given is no number.
            ValueError: it is NaN, or a schedule's count is missing.
        """
        for value in (progress, iteration, epoch):
            if value is not None and not isinstance(value, Real):
                raise TypeError(f"set_progress expected numbers, got {value!r}")
            if value is not None and math.isnan(value):
                raise ValueError("set_progress expected numbers, got nan; are the steps counted?")
        if not 0 <= progress <= 1:
            if not self.told_of_progress:
                self.told_of_progress = True
                warnings.warn(
                    f"progress is the share of training that is done, in [0, 1], got {progress}: "
                    "the nearest end is taken. Is the step counted against the right number of "
                    "steps?",
                    stacklevel=2,
                )
            progress = min(max(progress, 0.0), 1.0)
        self.progress, self.watch.scheduled = (progress, iteration, epoch), True
        for name, schedule in self.schedules.items():
            setattr(self, f"_{name}", schedule(progress, iteration, epoch))

    def mask_made(self) -> None:
        """Called in every ``forward``: a schedule that nobody moves is told of, once."""
        if self.training and torch.is_grad_enabled():
            self.watch.made(self.schedules)

    def log_values(self) -> dict[str, float | Tensor]:
        """Scalars of this strategy for the log of a step, without a gradient."""
        return {}

    def require(
        self,
        host: str,
        patch_size: tuple[int, ...] | None = None,
        equal_counts: str = "",
        no_gate: str = "",
        normalised_targets: bool = False,
    ) -> None:
        """Raise ValueError where the strategy's masks could not be followed.

        Args:
            host: what is to use the masks, for the message.
            patch_size: (height, width) of its patches in pixels; None for any.
            equal_counts: why it needs the same number of visible patches in every image; empty if
                it does not.
            no_gate: why no gradient flows through its mask; empty if one does.
            normalised_targets: whether it normalises each patch of its targets (``norm_pix``).
        """
        if patch_size is not None and self.patch_size != tuple(patch_size):
            slots, rest = divmod(self.patch_size[0], patch_size[0])
            deep = len(patch_size) == 3 and self.patch_size[1:] == tuple(patch_size[1:])
            tubes = f", or, for tubes, wrap it: TubeMasking(strategy, slots={slots})"
            raise ValueError(
                f"masking has patch_size={self.patch_size}, but {host} works on patches of "
                f"{tuple(patch_size)} pixels; give the strategy patch_size={tuple(patch_size)}"
                f"{tubes if deep and not rest else ''}"
            )
        if equal_counts and self.free_counts:
            raise ValueError(
                f"{host} {equal_counts}, but {type(self).__name__} leaves the count free; use "
                "threshold=dict(type='quantile')"
            )
        if no_gate and self.gate:
            raise ValueError(f"{host} {no_gate}; leave out gate=True")
        if normalised_targets and self.reward == "variance_normalised":
            raise ValueError(
                f"{host} normalises each patch of its targets (norm_pix): its errors are relative "
                "to the patch's variance already, and reward='variance_normalised' would divide by "
                "it once more and reward flat patches; use reward='error', or switch norm_pix off"
            )

    def grid(self, images: Tensor) -> tuple[int, ...]:
        """(rows, columns) of patches of ``(B, C, H, W)`` images; one number for each of
        ``patch_size``.

        Raises:
            TypeError: no tensor, or one of integers.
            ValueError: other dimensions than those of ``patch_size``, patches that do not tile the
                images, or a ``mask_ratio``, or an end of its schedule, that leaves none visible or
                none masked.
        """
        check_tensor(images, "images")
        number = len(self.patch_size)
        expected = f"expected images of shape {SHAPES[number]}, got {tuple(images.shape)}"
        if images.dim() != number + 2:
            raise ValueError(
                f"{expected}; patch_size={self.patch_size} is for {number} dimensions, a tuple of "
                "another length for signals, images, or clips and volumes"
            )
        if not images.is_floating_point():
            raise TypeError(
                "expected images as the encoder sees them, of floating point and normalised, got "
                f"{images.dtype}; such as (images.float() / 255 - mean) / std"
            )
        last = images.shape[-1]
        divided = number == 3 and last % self.patch_size[-1] == 0  # a volume of few columns
        if last <= 4 < min(images.shape[1:-1]) and not divided:
            order = (0, number + 1, *range(1, number + 1))
            raise ValueError(
                f"{expected}, which looks like channels-last; give images.permute{order}"
            )
        frames = images.shape[2]
        if number == 3 and frames <= 4 < images.shape[1] and frames % self.patch_size[0]:
            raise ValueError(
                f"{expected}, which looks like frames before channels; give images.transpose(1, 2)"
            )
        grid = grid_size(images.shape[2:], self.patch_size)
        self.check_counts(math.prod(grid), *self.ends("mask_ratio"))
        return grid

    def valid_patches(self, valid: Tensor | None, images: Tensor) -> Tensor | None:
        """``(B, L)`` bool from a mask of patches or of pixels; None where none was given.

        Raises:
            TypeError: not a tensor of bool.
            ValueError: of another shape.
        """
        if valid is None:
            return None
        check_tensor(valid, "valid")
        if valid.dtype != torch.bool:
            raise TypeError(f"valid expected bool, True where there is data, got {valid.dtype}")
        patches = (len(images), math.prod(self.grid(images)))
        pixels = (len(images), *images.shape[2:])
        if valid.shape == patches:
            return valid
        if valid.shape == pixels:
            holes = (~valid).to(torch.float32)[:, None]
            return MAX_POOL[len(self.patch_size)](holes, self.patch_size).flatten(1) == 0
        axes = SHAPES[len(self.patch_size)].replace("C, ", "")
        raise ValueError(
            f"valid expected (B, L) = {patches} patches or {axes} = {pixels} pixels, got "
            f"{tuple(valid.shape)}"
        )

    def extra_repr(self) -> str:
        numbers = {n: s if s.moves else s.start for n, s in self.schedules.items()}
        return settings(self, **{"patch_size": self.patch_size, **numbers})
