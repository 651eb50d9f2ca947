"""A hook that measures, during training, whether the masks are healthy."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from amn_masking.adapters.mmpretrain.mixin import images_of
from amn_masking.adapters.mmpretrain.ranks import over_ranks
from amn_masking.adapters.mmpretrain.runner.pictures_hook import (
    model_with_masks,
    same_random_numbers,
    unwrapped,
)
from amn_masking.mask import PatchMask
from amn_masking.meters import PositionMeter, at_random, mask_distance, score_entropy
from amn_masking.patches import masked_mean

STATE = "masking_meters"  # in checkpoints
LOOKS = 2  # measurements after which it is known what a forward pass moves


class MaskingMetersHook(Hook):
    """Logs whether the masks are healthy, and warns once when they have frozen.

    Before every ``interval``-th step, the first included, masks are drawn for its batch as the
    step will draw them, and the batch goes through the model twice without a gradient: under these
    masks and under as many patches at random positions, image by image. Training is not touched:
    weights, buffers and random numbers are afterwards what they were. The scalars reach every
    backend of the visualizer through mmengine's log, where the last value stands until the next:

    ===================== ========================================================================
    ``adversarial_gain``  error under the strategy's masks over error under random ones
    ``random_mask_error`` the latter: the one error that can be compared between strategies
    ``position_entropy``  :class:`~amn_masking.meters.PositionMeter`, of all training steps
    ``mask_distance``     :func:`~amn_masking.meters.mask_distance`, for batches of two and more
    ``score_entropy``     :func:`~amn_masking.meters.score_entropy`, for learned masks
    ===================== ========================================================================

    Without ``masking=`` it rests, with a warning.

    On several ranks each measures its own images, and the numbers are of all of them. The running
    shares of ``position_entropy``, and whether it was warned of, are saved in checkpoints.

    Args:
        interval: steps from one measurement to the next.
        window: steps that ``position_entropy`` looks back on.
        min_position_entropy: warn when it falls below, after ``window`` steps; in [0, 1]. Random
            masks give more than 0.97 whatever the ratio and the batch, one order of the patches for
            all images 0.65 to 0.85 with the default sampling, and 0 without any.

    Raises:
        ValueError: an option out of range; at the start of training, a model in FSDP's shards.
    """

    # NORMAL, as hooks are by default: before LoggerHook, after the one that counts the iterations.

    def __init__(
        self, interval: int = 50, window: int = 100, min_position_entropy: float = 0.3
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        if not 0 <= min_position_entropy <= 1:
            raise ValueError(f"min_position_entropy must lie in [0, 1], got {min_position_entropy}")
        self.interval = interval
        self.min_position_entropy = min_position_entropy
        self.positions = PositionMeter(window)
        self.warned = False
        self.handle: Any = None  # while there is something to measure
        self.measured = 0
        self.moved: set[int] = set()  # ids of the tensors that a forward pass moves
        self.newest: PatchMask | None = None

    def before_train(self, runner: Runner) -> None:
        model = model_with_masks(runner, self)
        if model is not None:
            self.handle = model.masking.register_forward_hook(self._keep)

    def after_train(self, runner: Runner) -> None:
        if self.handle is not None:
            self.handle.remove()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.handle is not None and runner.iter % self.interval == 0:
            scalars = self._measure(runner, data_batch)
            runner.message_hub.update_scalars({f"train/{key}": x for key, x in scalars.items()})
            self._warn(runner, scalars)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[STATE] = {"positions": self.positions.state_dict(), "warned": self.warned}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if STATE in checkpoint:
            self.positions.load_state_dict(checkpoint[STATE]["positions"])
            self.warned = checkpoint[STATE]["warned"]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.newest is not None:
            share = self.newest.predicted.mean(0, keepdim=True)
            all_reduce(share, "mean")
            self.positions.update(share, self.newest.grid)
            self.newest = None

    @torch.compiler.disable
    def _keep(self, masking: nn.Module, images: Tensor, patch_mask: PatchMask) -> None:
        if torch.is_grad_enabled():  # a step, and neither a measurement nor a picture
            self.newest = patch_mask.detach()

    @torch.no_grad()
    def _measure(self, runner: Runner, data_batch: Any) -> dict[str, float]:
        model, seed = unwrapped(runner), runner.iter * get_world_size() + get_rank()
        if isinstance(data_batch, dict):  # the step takes it from there, and need not move it again
            data_batch.update(model.data_preprocessor.cast_data(data_batch))
        before = [(tensor, tensor.clone()) for tensor in self._may_move(model)]
        try:
            # In the precision of a step.
            patch_mask, errors = self._errors(runner, model, data_batch, seed)
        finally:
            if self.measured < LOOKS:
                self.moved |= {id(x) for x, value in before if not torch.equal(x, value)}
            self.measured += 1
            for tensor, value in before:
                tensor.copy_(value)

        scalars = {"adversarial_gain": errors[0], "random_mask_error": errors[1]}
        if self.positions.grid is not None:
            scalars["position_entropy"] = self.positions.entropy()
        if patch_mask.mask.shape[0] > 1:
            scalars["mask_distance"] = mask_distance(patch_mask.predicted)
        if patch_mask.learned is not None:
            scalars["score_entropy"] = score_entropy(
                patch_mask.learned.score_logits, patch_mask.valid
            )
        numbers = over_ranks(scalars)
        # Of the errors of all ranks. An error of exactly 0 gives no exception.
        random = numbers["random_mask_error"]
        numbers["adversarial_gain"] = numbers["adversarial_gain"] / random if random else math.nan
        return numbers

    def _may_move(self, model: Any) -> list[Tensor]:
        """What a forward pass may move: statistics, offsets, codebooks, running copies of weights.

        Not what it left as it was in the first two measurements, such as the frozen network that
        makes the targets. (In the first alone a running copy may equal what it is a copy of.)
        """
        frozen = [*model.buffers(), *(p for p in model.parameters() if not p.requires_grad)]
        return [x for x in frozen if self.measured < LOOKS or id(x) in self.moved]

    def _errors(
        self, runner: Runner, model: Any, data_batch: Any, seed: int
    ) -> tuple[PatchMask, list[Tensor]]:
        """The learned mask, and the masked error under it and under a random one."""
        with runner.optim_wrapper.optim_context(runner.model):
            with same_random_numbers(seed):
                data = model.data_preprocessor(data_batch, True)
                model.follow_ratio()
                patch_mask = model.make_mask(images_of(data["inputs"]), data["data_samples"])
                random = at_random(patch_mask)
            errors = []
            for mask in (patch_mask, random):
                with same_random_numbers(seed):  # so that dropout is no difference
                    error = model.error_under(mask, **data)
                    errors.append(masked_mean(error, mask.predicted.expand_as(error)))
        return patch_mask, errors

    def _warn(self, runner: Runner, scalars: dict[str, float]) -> None:
        entropy = scalars.get("position_entropy", 1.0)
        if self.warned or not self.positions.filled or entropy >= self.min_position_entropy:
            return
        self.warned = True
        runner.logger.warning(
            f"The masks have frozen to fixed positions: position_entropy is {entropy:.3f}, below "
            f"{self.min_position_entropy:g} (1: every position is masked equally often, 0: always "
            "the same ones), so the autoencoder is not trained on the others. Raise "
            "masking.random_share (such as 0.3) or masking.temperature, use an estimator with "
            "noise, or lower the masking network's lr_mult in "
            "optim_wrapper.paramwise_cfg.custom_keys.masking"
        )
