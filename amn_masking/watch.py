"""Says so where a masking network would never be trained."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

STEPS = 100


class TrainingWatch:
    """Looks, once after ``STEPS`` training masks, whether anything has trained the network.

    It counts on the host, and compares weights only where nothing else says that they moved: it
    does not wait for the device. Under ``torch.compile`` it rests.

    Attributes:
        masks: training masks that were made.
        objectives: objectives that were made of them.
        scheduled: whether the strategy was told of the progress of training.
    """

    def __init__(self) -> None:
        self.masks = 0
        self.objectives = 0
        self.scheduled = False
        self.version = -1
        self.before: Tensor | None = None

    def made(self, network: nn.Module, moves: list[str], strength: float) -> None:
        """A training mask was made.

        Args:
            network: what made it.
            moves: names of the strategy's schedules that are more than a constant.
            strength: of the reversed gradient now; at 0 the network has nothing to learn.
        """
        self.masks += 1
        weight = next((p for p in network.parameters() if p.requires_grad), None)
        if self.masks == 1 and weight is not None:
            self.version = weight._version
            # The smallest parameter that learns, for the one comparison there may be.
            smallest = min((p for p in network.parameters() if p.requires_grad), key=Tensor.numel)
            self.before = smallest.detach().clone()
        if self.masks != STEPS:
            return
        if moves and not self.scheduled:
            warn(
                f"{', '.join(moves)} has a schedule, but set_progress was never called in {STEPS} "
                "training masks, so it stays at its start. Call masking.set_progress(step / steps) "
                "in every step"
            )
        if weight is None or self.before is None:
            return
        if self.objectives == 0:
            warn(
                f"{STEPS} training masks were made, but none of them reached a loss that trains "
                "the masking network, so the masks learn nothing. Minimise "
                "masking.total_loss(loss, error, patch_mask), or give CombinedAdversarialLoss the "
                "PatchMask itself and not its tensor"
            )
        elif strength and weight._version == self.version and self._unmoved(network):
            warn(
                f"the masking network's weights have not moved in {STEPS} training masks, so the "
                "masks learn nothing. Give its parameters to the optimizer: make the strategy a "
                "submodule of the model before the optimizer is made, or add "
                "masking.parameters() to it (with lambda_adv=0 nothing is wrong: it rests)"
            )
        self.before = None

    def _unmoved(self, network: nn.Module) -> bool:
        smallest = min((p for p in network.parameters() if p.requires_grad), key=Tensor.numel)
        before = self.before
        return before is not None and torch.equal(smallest.detach(), before.to(smallest))


def warn(message: str) -> None:
    """A warning at the place that the user's own code reaches."""
    warnings.warn(message, UserWarning, stacklevel=3)
