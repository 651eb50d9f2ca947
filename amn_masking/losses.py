"""Reconstruction, adversarial and combined loss: one scalar, one backward, one optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking.checks import check_tensor
from amn_masking.config import settings
from amn_masking.mask import PatchMask
from amn_masking.patches import masked_mean, pool_to_patches, spread_to_pixels

CRITERIA = {"L1": F.l1_loss, "L2": F.mse_loss}


class LossTerms(NamedTuple):
    """R, A and the objective of :class:`CombinedAdversarialLoss`, scalars."""

    reconstruction: Tensor
    adversarial: Tensor
    objective: Tensor


class CombinedAdversarialLoss(nn.Module):
    """total = R + lambda_adv * A + lambda_adv * objective.

    With m the predicted patches (the masked ones, less those that ``prediction_ratio`` leaves out),
    l the per-patch error and s the patch scores::

        R = sum(m l) / sum(m)          over the batch, or over all patches but those left out
        A = sum(m w l) / sum(m w)      per image, then their mean; w = sg(s), or 1; on R's scale
                                       R and A of nothing masked are 0
        objective                      the estimator's; value 0, gradient reversed

    Minimising it trains the autoencoder to reconstruct and, in the same backward pass, the
    masking network to make that hard (its gradient is reversed where the mask is made). The
    autoencoder gets no gradient that came through the mask. With ``lambda_adv=0`` it equals
    mmpretrain's ``PixelReconstructionLoss`` bit for bit.

    Args:
        criterion: ``'L1'`` or ``'L2'``; by default ``'L2'``, or the codebase's own where that has
            one.
        lambda_adv: weight of the adversarial term, >= 0.
        reconstruct: ``'masked'`` patches, or ``'all'`` of them, in R.
        score_weighted: whether A weights the patches by their score.
        channel: divides R where a mask is given (SimMIM's 4-D images: their channels).

    Raises:
        ValueError: a value out of range.

    Example:
        >>> import torch
        >>> from amn_masking import AdversarialMasking
        >>> patch_mask = AdversarialMasking(mask_ratio=0.5, patch_size=16)(torch.rand(2, 3, 64, 64))
        >>> pred, target = torch.rand(2, 16, 768, requires_grad=True), torch.rand(2, 16, 768)
        >>> CombinedAdversarialLoss(lambda_adv=0.5)(pred, target, patch_mask).backward()
    """

    def __init__(
        self,
        criterion: Literal["L1", "L2"] | None = None,
        lambda_adv: float = 0.5,
        reconstruct: Literal["masked", "all"] = "masked",
        score_weighted: bool = True,
        channel: int | None = None,
    ) -> None:
        super().__init__()
        self.criterion_said = criterion is not None
        criterion = criterion or "L2"
        if criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {sorted(CRITERIA)}, got {criterion!r}")
        if not lambda_adv >= 0:
            raise ValueError(
                f"lambda_adv weights the adversarial term and cannot be negative, got "
                f"{lambda_adv}; a cooperative mask is strength=-1 on AdversarialMasking"
            )
        if reconstruct not in ("masked", "all"):
            raise ValueError(f"reconstruct must be 'masked' or 'all', got {reconstruct!r}")
        self.criterion = criterion
        self.lambda_adv = lambda_adv
        self.reconstruct = reconstruct
        self.score_weighted = score_weighted
        self.channel = 1 if channel is None else channel

    def settings(self) -> tuple[object, ...]:
        """All that it was told, to compare."""
        return self.criterion, self.lambda_adv, self.reconstruct, self.score_weighted, self.channel

    def forward(
        self, pred: Tensor, target: Tensor, mask: Tensor | PatchMask | None = None
    ) -> Tensor:
        """The combined loss.

        Args:
            pred: ``(B, L, D)`` patches, or ``(B, C, H, W)`` images, or ``(B, C, D, H, W)`` clips.
                Signals are given as patches.
            target: of the same shape.
            mask: a :class:`PatchMask`; or a tensor, 1 = masked, that broadcasts to the error
                (``(B, L)``, or ``(B, 1, H, W)`` for images); or None for all patches. Without a
                PatchMask there is no masking network to train, and w = 1.

        Returns:
            A scalar.

        Raises:
            ValueError: the shapes do not fit each other.
        """
        terms = self.terms(pred, target, mask)
        return terms.reconstruction + self.lambda_adv * (terms.adversarial + terms.objective)

    if TYPE_CHECKING:  # an editor then knows what the loss is

        def __call__(
            self, pred: Tensor, target: Tensor, mask: Tensor | PatchMask | None = None
        ) -> Tensor: ...

    def terms(
        self, pred: Tensor, target: Tensor, mask: Tensor | PatchMask | None = None
    ) -> LossTerms:
        """The parts of the loss, unweighted; arguments as for :meth:`forward`."""
        everywhere = self.reconstruct == "all"
        if not isinstance(mask, PatchMask):
            if mask is not None:
                check_tensor(mask, "mask")
            error = self.error(pred, target, None if everywhere else mask)
            adversarial = self._mean(error, mask)
            reconstruction = self._mean(error, None) if everywhere else adversarial
            return LossTerms(reconstruction, adversarial, torch.zeros_like(adversarial))
        hard = mask.predicted
        counts = mask.counted if everywhere else hard
        if in_pixels := isinstance(pred, Tensor) and pred.dim() > 3:
            hard = spread_to_pixels(hard, mask.grid, *pred.shape[2:])
            counts = (
                None if counts is None else spread_to_pixels(counts, mask.grid, *hard.shape[2:])
            )
        error = self.error(pred, target, counts)
        per_patch = pool_to_patches(error, mask.grid, "an error") if in_pixels else error
        if not everywhere:
            # R sums over the channels of images and divides by `channel`: so do the other terms,
            # or lambda_adv would weigh less than it says.
            per_patch = per_patch * ((error.shape[1] if in_pixels else 1) / self.channel)
        adversarial, objective = self.adversarial_terms(per_patch, mask)
        if everywhere and mask.counted is not None:
            reconstruction = masked_mean(per_patch, mask.counted)
        else:
            reconstruction = self._mean(error, None if everywhere else hard)
        return LossTerms(reconstruction, adversarial, objective)

    def adversarial_terms(self, error: Tensor, patch_mask: PatchMask) -> tuple[Tensor, Tensor]:
        """A and the masking network's objective.

        Args:
            error: ``(B, L)`` per-patch error, with the autoencoder's gradient.
            patch_mask: the mask that the error was made under.

        Raises:
            ValueError: the error is not one number per patch of this mask; or the strategy that
                made the mask has weights of its own.
        """
        mask = patch_mask.predicted
        if error.shape != mask.shape:
            raise ValueError(
                f"expected a per-patch error of shape (B, L) = {tuple(mask.shape)}, got "
                f"{tuple(error.shape)}"
            )
        learned = patch_mask.learned
        if learned is not None and learned.loss not in (None, self):
            raise ValueError(
                "the strategy was given loss=..., but its mask reaches another "
                "CombinedAdversarialLoss, whose lambda_adv would count and not the strategy's; "
                "leave loss out of the strategy, or use strategy.total_loss"
            )
        weight = mask
        if self.score_weighted and learned is not None:
            weight = mask * learned.relative_scores
        # By image, so that ranks of b images together do what one process does with all of them.
        # Scores of extreme logits round to 0; then A is 0 and not a division by it. An error that
        # is not a number at a visible patch has no weight.
        error = error.where(mask > 0, 0.0)
        adversarial = ((weight * error).sum(1) / weight.sum(1).clamp_min(1e-12)).mean()
        if learned is None:
            return adversarial, torch.zeros_like(adversarial)
        return adversarial, learned.objective(error)

    def error(self, pred: Tensor, target: Tensor, counts: Tensor | None = None) -> Tensor:
        """Un-reduced error: ``(B, L)`` for patches (mean over D), of images' shape for images.

        Args:
            pred, target: as for :meth:`forward`.
            counts: broadcasts to the error; where it is 0 the target may be NaN, and the gradient
                is 0. None for everywhere.

        Raises:
            TypeError: not tensors.
            ValueError: different shapes, or not of 3 to 5 axes, or a mask that does not fit them.
        """
        check_tensor(pred, "pred")
        check_tensor(target, "target")
        if pred.shape != target.shape or pred.dim() not in (3, 4, 5):
            raise ValueError(
                "expected pred and target of one shape, (B, L, D) or (B, C, H, W) or "
                f"(B, C, D, H, W), got {tuple(pred.shape)} and {tuple(target.shape)}"
            )
        if counts is not None:
            counts = counts[..., None] if pred.dim() == 3 else counts
            if any(
                n not in (1, m) for n, m in zip(counts.shape[::-1], pred.shape[::-1], strict=False)
            ):
                raise ValueError(
                    "expected a mask of (B, L) for patches of (B, L, D), of (B, 1, H, W) for "
                    f"images of (B, C, H, W), got {tuple(counts.shape)} for {tuple(pred.shape)}"
                )
            target = target.where(counts != 0, 0.0)  # a gradient of 0 times NaN would be NaN
        error = CRITERIA[self.criterion](pred, target, reduction="none")
        return error.mean(-1) if error.dim() == 3 else error

    def _mean(self, error: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return error.mean()
        # The order of operations is PixelReconstructionLoss's, so that R equals it bit for bit.
        hidden = error.where(mask != 0, 0.0)
        return (hidden * mask).sum() / mask.sum().clamp_min(1) / self.channel

    def extra_repr(self) -> str:
        return settings(self)
