"""Says so where a schedule never moves, a masking network is never asked or would never be trained,
or sees images it was not made for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.compiler import assume_constant_result

from amn_masking.checks import is_compiling
from amn_masking.schedules import Schedule

STEPS = 100
# Gradients may be accumulated over that many masks before the weights move.
STEPS_TO_MOVE = 1000


@assume_constant_result  # runs while the step is compiled, and leaves no graph break
def never_told(names: str) -> None:
    """Warn of schedules that stand still: compiled code cannot count the masks."""
    warnings.warn(
        f"{names} has a schedule, but set_progress was not called before the step was compiled; if "
        "it never is, the schedule stays at its start. Call masking.set_progress(step / steps) in "
        "every step, before the forward pass",
        stacklevel=2,
    )


class TrainingWatch:
    """Looks once at the first batch, and at the training after ``STEPS`` training masks, at its
    weights after ``STEPS_TO_MOVE``.

    Masks at strength 0, from which there is nothing to learn, are not counted. It counts on the
    host, notes on the device whether a gradient came, and compares weights only where nothing else
    says that they moved: after the first batch it waits for the device once. Under
    ``torch.compile`` it rests, but for schedules of which nobody said how far the training is.

    Attributes:
        asked: whether the network ever scored an image.
        turned: how often it was put into training mode before.
        looked: whether the first batch was looked at.
        masks: training masks that were made.
        steps: those at another strength than 0.
        objectives: objectives that were made of them.
        gradient: a bool on the device, whether any gradient of theirs was not 0; None if none came.
        scheduled: whether the strategy was told of the progress of training.
    """

    def __init__(self) -> None:
        self.asked = self.looked = False
        self.turned = 0
        self.scheduled = False
        self.masks = self.steps = self.objectives = 0
        self.gradient: Tensor | None = None
        self.start: tuple[int, Tensor] | None = None  # version and value of a weight

    def turned_to_training(self) -> None:
        """The network was put into training mode, as transformers' Trainer does in every step."""
        if self.asked:
            return
        self.turned += 1
        if self.turned == STEPS:
            warnings.warn(
                f"the masking network was put into training mode {STEPS} times, but never asked "
                "for a mask, so it learns nothing and the model masks as it does without. A stock "
                "training loop does not look at model.masking: use the adapter's, such as "
                "MaskedTrainerMixin beside transformers' Trainer",
                stacklevel=2,
            )

    def scored(self, images: Tensor, scores: Tensor) -> None:
        """Look at the first batch, by reading four numbers back.

        Args:
            images: that the network was given.
            scores: what it made of them.

        Raises:
            TypeError: the network gives no tensor.
            ValueError: scores outside [0, 1].
        """
        self.asked = True
        if self.looked or is_compiling():
            return
        self.looked = True
        if not isinstance(scores, Tensor):
            raise TypeError(
                "network expected to give a score map, a tensor of shape (B, 1, H', W'), got "
                f"{type(scores).__name__}"
            )
        low, high, darkest, brightest = torch.stack(
            [x.float() for part in (scores, images) for x in torch.aminmax(part.detach())]
        ).tolist()
        if low < 0 or high > 1:
            raise ValueError(
                f"network expected to give scores in (0, 1), got {low:.3g} to {high:.3g}; end it "
                "with a sigmoid"
            )
        if brightest - darkest > 50:
            warnings.warn(
                f"the images' values go from {darkest:.3g} to {brightest:.3g}; the masking network "
                "expects them normalised, as the encoder sees them: (images / 255 - mean) / std",
                stacklevel=2,
            )

    def made(self, schedules: Mapping[str, Schedule]) -> None:
        """A training mask was made, under these schedules."""
        moves = [name for name, schedule in schedules.items() if schedule.moves]
        if is_compiling():
            if moves and not self.scheduled:
                never_told(", ".join(moves))
            return
        self.masks += 1
        if self.masks == STEPS and moves and not self.scheduled:
            warnings.warn(
                f"{', '.join(moves)} has a schedule, but set_progress was never called in {STEPS} "
                "training masks, so it stays at its start. Call masking.set_progress(step / steps) "
                "in every step",
                stacklevel=2,
            )

    def taught(self, network: nn.Module, logits: Tensor, strength: float) -> None:
        """Its gradient is to train this network, at this strength of the reversal.

        Args:
            logits: ``(B, L)`` that the mask was made of.
        """
        learning = [p for p in network.parameters() if p.requires_grad]
        if not strength or not learning or is_compiling():
            return
        self.steps += 1
        # The smallest, for the one comparison there may be.
        weight = min(learning, key=Tensor.numel)
        if self.steps == 1:
            self.start = weight._version, weight.detach().clone()
        if self.steps < STEPS and logits.requires_grad:
            logits.register_hook(self.felt)
        if self.steps == STEPS and self.objectives == 0 and self.gradient is None:
            self.start = None
            warnings.warn(
                f"{STEPS} training masks were made, but none of them reached a loss that trains "
                "the masking network, so the masks learn nothing. Minimise "
                "masking.total_loss(loss, error, patch_mask), or give CombinedAdversarialLoss the "
                "PatchMask itself and not its tensor",
                stacklevel=2,
            )
        elif self.steps == STEPS and self.gradient is not None and not bool(self.gradient):
            self.start = None
            warnings.warn(
                f"the masking network's gradient was exactly 0 in {STEPS} training masks, so the "
                "masks learn nothing. Are two patches of an image masked at least, not all of them "
                "at random, and are their errors not all alike? (with lambda_adv=0 nothing is "
                "wrong: it rests)",
                stacklevel=2,
            )
        elif self.steps == STEPS_TO_MOVE and self.start and self.rests(weight, *self.start):
            warnings.warn(
                f"the masking network's weights have not moved in {STEPS_TO_MOVE} training masks, "
                "so the masks learn nothing. Give its parameters to the optimizer: make the "
                "strategy a submodule of the model before the optimizer is made, or add "
                "masking.parameters() to it (with lambda_adv=0 nothing is wrong: it rests)",
                stacklevel=2,
            )

    @staticmethod
    def rests(weight: Tensor, version: int, before: Tensor) -> bool:
        """Whether the weight is what it was before."""
        return weight._version == version and torch.equal(weight.detach(), before.to(weight))

    def felt(self, gradient: Tensor) -> None:
        """A gradient came back to the logits of a mask."""
        some = gradient.detach().any()
        self.gradient = some if self.gradient is None else self.gradient | some

    def heard(self) -> None:
        """An objective was made of a training mask."""
        if not is_compiling():
            self.objectives += 1
