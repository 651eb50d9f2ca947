"""Says so where a masking network would never be trained."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

STEPS = 100


class TrainingWatch:
    """Looks, once after ``STEPS`` training masks, whether anything has trained the network.

    Masks at strength 0, from which there is nothing to learn, are not counted. It counts on the
    host, and compares weights only where nothing else says that they moved: it does not wait for
    the device. Under ``torch.compile`` it rests.

    Attributes:
        masks: training masks that were made.
        steps: those at another strength than 0.
        objectives: objectives that were made of them.
        scheduled: whether the strategy was told of the progress of training.
    """

    def __init__(self) -> None:
        self.masks = 0
        self.steps = 0
        self.objectives = 0
        self.scheduled = False
        self.version = -1
        self.before: Tensor | None = None

    def made(self, network: nn.Module, moves: list[str], strength: float) -> None:
        """A training mask was made.

        Args:
            network: what made it.
            moves: names of the strategy's schedules that are more than a constant.
            strength: of the reversed gradient now.
        """
        self.masks += 1
        if self.masks == STEPS and moves and not self.scheduled:
            warnings.warn(
                f"{', '.join(moves)} has a schedule, but set_progress was never called in {STEPS} "
                "training masks, so it stays at its start. Call masking.set_progress(step / steps) "
                "in every step",
                stacklevel=2,
            )
        learning = [p for p in network.parameters() if p.requires_grad]
        if not strength or not learning:
            return
        self.steps += 1
        # The smallest, for the one comparison there may be.
        weight = min(learning, key=Tensor.numel)
        if self.steps == 1:
            self.version, self.before = weight._version, weight.detach().clone()
        if self.steps != STEPS:
            return
        if self.objectives == 0:
            warnings.warn(
                f"{STEPS} training masks were made, but none of them reached a loss that trains "
                "the masking network, so the masks learn nothing. Minimise "
                "masking.total_loss(loss, error, patch_mask), or give CombinedAdversarialLoss the "
                "PatchMask itself and not its tensor",
                stacklevel=2,
            )
        elif weight._version == self.version and self._unmoved(weight):
            warnings.warn(
                f"the masking network's weights have not moved in {STEPS} training masks, so the "
                "masks learn nothing. Give its parameters to the optimizer: make the strategy a "
                "submodule of the model before the optimizer is made, or add "
                "masking.parameters() to it (with lambda_adv=0 nothing is wrong: it rests)",
                stacklevel=2,
            )
        self.before = None

    def _unmoved(self, weight: Tensor) -> bool:
        before = self.before
        return before is not None and torch.equal(weight.detach(), before.to(weight))
