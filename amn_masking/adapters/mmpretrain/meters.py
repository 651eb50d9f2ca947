"""A hook that measures, during training, whether the masks are healthy."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from amn_masking.adapters.mmpretrain.pictures import same_random_numbers, unwrapped
from amn_masking.adapters.mmpretrain.seams import training_progress
from amn_masking.mask import PatchMask
from amn_masking.meters import PositionMeter, mask_distance, score_entropy

STATE = "masking_meters"  # in checkpoints


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

    On several ranks each measures its own images; those of rank 0 are logged. The running shares
    of ``position_entropy`` are saved in checkpoints.

    Args:
        interval: steps from one measurement to the next.
        window: steps that ``position_entropy`` looks back on.
        min_position_entropy: warn when it falls below, after ``window`` steps; in [0, 1]. Random
            masks give more than 0.97 whatever the ratio and the batch, one order of the patches for
            all images 0.65 to 0.85 with the default sampling, and 0 without any.

    Raises:
        ValueError: an option out of range; at the start of training, a model without ``masking=``.
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
        self.handle: Any = None

    def before_train(self, runner: Runner) -> None:
        masking = getattr(unwrapped(runner), "masking", None)
        if masking is None:
            raise ValueError(
                "MaskingMetersHook expected a model with masking=, got "
                f"{type(unwrapped(runner)).__name__}; add masking=dict(type=...) to an amn_masking "
                "method or take the hook out of custom_hooks"
            )
        self.handle = masking.register_forward_hook(self._count)

    def after_train(self, runner: Runner) -> None:
        self.handle.remove()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter % self.interval == 0:
            scalars = self._measure(runner, data_batch)
            runner.message_hub.update_scalars({f"train/{key}": x for key, x in scalars.items()})
            self._warn(runner, scalars)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[STATE] = self.positions.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if STATE in checkpoint:
            self.positions.load_state_dict(checkpoint[STATE])

    @torch.compiler.disable
    def _count(self, masking: nn.Module, images: Tensor, patch_mask: PatchMask) -> None:
        if torch.is_grad_enabled():  # a step, and neither a measurement nor a picture
            self.positions.update(patch_mask)

    @torch.no_grad()
    def _measure(self, runner: Runner, data_batch: Any) -> dict[str, float]:
        model, seed = unwrapped(runner), runner.iter
        # What a forward pass may move: statistics, offsets, codebooks, running copies of weights.
        moved = [*model.buffers(), *(p for p in model.parameters() if not p.requires_grad)]
        before = [(tensor, tensor.clone()) for tensor in moved]
        try:
            # In the precision of a step.
            patch_mask, errors = self._errors(runner, model, data_batch, seed)
        finally:
            for tensor, value in before:
                tensor.copy_(value)

        # As tensors: an error of exactly 0 gives no exception.
        gain = errors[0] / errors[1]
        scalars = {"adversarial_gain": float(gain), "random_mask_error": float(errors[1])}
        if self.positions.grid is not None:
            scalars["position_entropy"] = float(self.positions.entropy())
        if patch_mask.mask.shape[0] > 1:
            scalars["mask_distance"] = float(mask_distance(patch_mask.mask))
        if patch_mask.logits is not None:
            scalars["score_entropy"] = float(score_entropy(patch_mask.logits))
        return scalars

    def _errors(
        self, runner: Runner, model: Any, data_batch: Any, seed: int
    ) -> tuple[PatchMask, list[Tensor]]:
        """The learned mask, and the masked error under it and under a random one."""
        with runner.optim_wrapper.optim_context(runner.model):
            with same_random_numbers(seed):
                data = model.data_preprocessor(data_batch, True)
                images = data["inputs"]
                images = images if isinstance(images, Tensor) else images[0]
                model.masking.set_progress(*training_progress())
                patch_mask = model.make_mask(images)
                noise = torch.rand(patch_mask.mask.shape, device=patch_mask.mask.device)
            at_random = PatchMask.from_shuffle(
                noise.argsort(1), patch_mask.num_visible, patch_mask.grid, patch_mask.visible_counts
            )
            errors = []
            for mask in (patch_mask, at_random):
                with same_random_numbers(seed):  # so that dropout is no difference
                    errors.append(model.masked_error(mask, **data))
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
