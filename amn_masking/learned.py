"""``LearnedMask``: what a learning strategy made beside the mask, and what trains its network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amn_masking.mask import PatchMask
from amn_masking.network import to_logits


class Once:
    """Calls a function the first time and does nothing from then on, for all that share it."""

    def __init__(self, function: Callable[[Tensor, LearnedMask], None]) -> None:
        self.function: Callable[[Tensor, LearnedMask], None] | None = function

    def __call__(self, error: Tensor, learned: LearnedMask) -> None:
        function, self.function = self.function, None
        if function is not None:
            function(error, learned)


@dataclass(eq=False)
class LearnedMask:
    """The choice of a masking network, with the gradient that trains it.

    Attributes:
        chosen: the hard mask of the patches that were chosen: those that are predicted.
        logits: ``(B, L)`` the patch logits that the mask came from, carrying the (reversed)
            gradient to the masking network. Larger is masked first.
        surrogate: ``(B, L)`` float32, equal to ``chosen.mask`` bit for bit. Its gradient is the
            estimator's, with the adversary's reversal already applied: minimising any loss of
            the surrogate trains the masking network to *raise* it (at strength +1).
        patch_scores: ``(B, L)`` in (0, 1), mean of the score map over each patch, no gradient.
        score_map: ``(B, 1, H', W')`` in (0, 1), no gradient, of the size that the network gives.
        threshold: ``(B,)`` float32, each image's tau on the scale of ``relative_scores``.
        estimate: the estimator's objective: takes the ``(B, L)`` reward and this, gives a scalar of
            value 0 whose gradient, reversed, reaches the masking network.
        strength: of the reversed gradient, in [-1, 1]; negative where easy masks are sought.
        chances: ``(B, L)`` probability of each patch to be masked, no gradient; None where the
            estimator does not say.
        drawn_at_random: ``(B, L)`` bool, True at masked patches drawn at random
            (``random_share``); None if there are none.
        reward_scale: ``(B, L)`` float32, > 0, what the image's errors are divided by where they
            reward the masking network; None for the errors themselves. Of the image, not of the
            mask.
        variance: ``(B, 1)`` float32, mean variance within the image's patches, no gradient; None
            where the estimator has no use for it. Of the image, not of the mask.
        regulariser: ``(B,)`` what the masking network minimises beside the objective, with a
            gradient that is *not* reversed; None for nothing.
        gate: whether visible tokens are multiplied by 1 - surrogate.
        trainable: whether the masking network has anything to learn from this mask.
        on_objective: is told of a training step's error and this, before the first objective of
            this mask or a copy of it is made, and of no other: a loss that is evaluated twice is
            one step. Not under ``torch.no_grad()``.
        one_slot: of a mask that is repeated in every time slot (:meth:`PatchMask.tubes`), the mask
            of one; the mean over the slots of each patch's error is what rewards it.
        loss: the strategy's own weights of the adversarial terms, where its user set them; no other
            loss may then add these terms.

    Example:
        >>> import torch
        >>> from amn_masking import AdversarialMasking
        >>> patch_mask = AdversarialMasking(mask_ratio=0.25)(torch.rand(2, 3, 64, 64))
        >>> torch.equal(patch_mask.learned.surrogate, patch_mask.mask)
        True
        >>> patch_mask.learned.patch_scores.shape
        torch.Size([2, 16])
    """

    chosen: PatchMask
    logits: Tensor
    surrogate: Tensor
    patch_scores: Tensor
    score_map: Tensor
    threshold: Tensor
    estimate: Callable[[Tensor, LearnedMask], Tensor]
    strength: float = 1.0
    chances: Tensor | None = None
    drawn_at_random: Tensor | None = None
    reward_scale: Tensor | None = None
    variance: Tensor | None = None
    regulariser: Tensor | None = None
    gate: bool = False
    trainable: bool = True
    on_objective: Once | None = None
    loss: object | None = None
    one_slot: LearnedMask | None = None

    @property
    def relative_scores(self) -> Tensor:
        """``(B, L)`` in (0, 1), no gradient: sigmoid of the patch logits.

        Equal to ``patch_scores`` where the logits are not standardised.
        """
        return torch.sigmoid(self.logits.detach())

    @property
    def score_logits(self) -> Tensor:
        """``(B, L)``, no gradient: the logits of ``patch_scores``, before any standardisation."""
        return to_logits(self.patch_scores)

    def objective(self, error: Tensor) -> Tensor:
        """The masking network's objective: a scalar of value 0 whose gradient trains it.

        Args:
            error: ``(B, L)`` per-patch error under this mask; what it is at patches that were not
                chosen does not matter.

        Raises:
            ValueError: the mask carries no gradient, although the error is about to be minimised.
        """
        if self.one_slot is not None:
            slots = error.to(self.surrogate.dtype).unflatten(1, (-1, self.one_slot.logits.shape[1]))
            return self.one_slot.objective(slots.mean(1))
        if error.requires_grad and self.trainable and not self.logits.requires_grad:
            raise ValueError(
                "this mask was made under torch.no_grad(), so the masking network would learn "
                "nothing from this step; make it where gradients are recorded, in the same step as "
                "the loss (or say that it is to learn nothing: patch_mask.detach())"
            )
        error = error.detach().to(self.surrogate.dtype)
        error = error.where(self.chosen.mask > 0, 0.0)
        if self.on_objective is not None and torch.is_grad_enabled():
            self.on_objective(error, self)
        reward = error if self.reward_scale is None else error / self.reward_scale
        objective = self.estimate(reward, self)
        if self.regulariser is not None:
            objective = objective + (self.regulariser - self.regulariser.detach()).mean()
        return objective

    def take(self, images: Tensor) -> LearnedMask:
        """The masks of some images of the batch, in the order of ``images``, ``(M,)`` int64.

        What is of the image and not of its mask, the reward's scale and the variance, stays.
        """
        one_slot = None if self.one_slot is None else self.one_slot.take(images)
        return self._changed(lambda value: value[images], self.chosen.take(images), one_slot)

    def to(self, device: torch.device | str) -> LearnedMask:
        """The same on another device."""
        one_slot = None if self.one_slot is None else self.one_slot.to(device)
        moved = self._changed(lambda value: value.to(device), self.chosen.to(device), one_slot)
        scale, variance = self.reward_scale, self.variance
        return replace(
            moved,
            reward_scale=None if scale is None else scale.to(device),
            variance=None if variance is None else variance.to(device),
        )

    def detach(self) -> LearnedMask:
        """The same without gradients: nothing is learned from it, by a threshold neither."""
        regulariser = None if self.regulariser is None else self.regulariser.detach()
        return replace(
            self,
            trainable=False,
            logits=self.logits.detach(),
            surrogate=self.surrogate.detach(),
            regulariser=regulariser,
            on_objective=None,
            loss=None,
            one_slot=None if self.one_slot is None else self.one_slot.detach(),
        )

    def _changed(
        self,
        change: Callable[[Tensor], Tensor],
        chosen: PatchMask,
        one_slot: LearnedMask | None,
    ) -> LearnedMask:
        chances, drawn, regulariser = self.chances, self.drawn_at_random, self.regulariser
        return replace(
            self,
            chosen=chosen,
            logits=change(self.logits),
            surrogate=change(self.surrogate),
            patch_scores=change(self.patch_scores),
            score_map=change(self.score_map),
            threshold=change(self.threshold),
            chances=None if chances is None else change(chances),
            drawn_at_random=None if drawn is None else change(drawn),
            regulariser=None if regulariser is None else change(regulariser),
            one_slot=one_slot,
        )
