"""``transformers.Trainer`` with the strategy that is its model's ``masking``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.adapters.huggingface.forward import find_interface, masked_forward
from amn_masking.adapters.resuming import differences
from amn_masking.meters import adversarial_gain, mask_statistics


class MaskedTrainerMixin:
    """Gives a ``transformers.Trainer`` the strategy that is its model's ``masking``.

    ``class MaskedTrainer(MaskedTrainerMixin, Trainer): ...`` is all there is to write. Being a
    submodule of the model, the masking network has the Trainer's optimizer, checkpoints and
    processes.

    The schedules move with the Trainer's steps. Beside ``loss`` the log gets, as means over the
    steps since the last entry and over the processes, ``reconstruction`` (the model's own loss),
    the mask's statistics and the strategy's ``log_values()``; and, for the last batch,
    ``adversarial_gain``, which costs two forward passes per entry.

    The data may hold ``valid`` beside ``pixel_values``, as for :func:`masked_forward`; it is kept
    also under ``remove_unused_columns``, the Trainer's default.

    Raises:
        ValueError: the model has no ``masking``, or one that does not suit it.
    """

    accelerator: Any
    model: Any
    model_wrapped: Any
    state: Any
    _signature_columns: Any

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Reconstruction, in training with the adversarial terms, a mean over the batch."""
        # A mean is what the Trainer has to divide by the accumulation steps. It would not if the
        # data had labels, because the model's **kwargs look as if it took num_items_in_batch.
        self.model_accepts_loss_kwargs = False
        masking = find_interface(model).model._modules.get("masking")
        if masking is None:
            raise ValueError(
                "expected a masking strategy in model.masking; before the Trainer is made say "
                "model.masking = AdversarialMasking(mask_ratio=..., patch_size=...)"
            )
        if model.training:
            state = self.state
            done_share = min(1.0, state.global_step / state.max_steps)
            masking.set_progress(done_share, state.global_step, state.epoch or 0.0)
        done = masked_forward(model, masking=masking, **inputs)
        if model.training:
            seen = {"reconstruction": done.reconstruction.detach()}
            seen.update(mask_statistics(done.patch_mask))
            for name, value in masking.log_values().items():
                seen[name] = torch.as_tensor(value, device=done.reconstruction.device)
            self.__dict__.setdefault("seen_masks", []).append(seen)
            self.last_batch = inputs, done.patch_mask.detach()
        loss = done.outputs.loss if model.training else done.reconstruction
        return (loss, done.outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        # The Trainer removes from the data what the model's forward does not name.
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if "valid" not in self._signature_columns:
            self._signature_columns.append("valid")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log, with the numbers about the masks in the entries of training."""
        seen = self.__dict__.get("seen_masks")
        if seen and "loss" in logs:
            means = {key: torch.stack([step[key] for step in seen]).mean() for key in seen[0]}
            means["adversarial_gain"] = self.adversarial_gain()
            numbers = torch.stack([mean.float() for mean in means.values()])
            numbers = self.accelerator.reduce(numbers, reduction="mean")
            logs.update(zip(means, numbers.tolist(), strict=True))
            seen.clear()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, folder: str, *args: Any, **kwargs: Any) -> None:
        # A sharded checkpoint is loaded piece by piece, and no piece holds all weights.
        whole = not any(Path(folder).glob("*.index.json"))
        with names_as_saved(self.model, folder if whole else ""):
            super()._load_from_checkpoint(folder, *args, **kwargs)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        with names_as_saved(self.model):
            super()._load_best_model()  # type: ignore[misc]

    @torch.no_grad()
    def adversarial_gain(self) -> Tensor:
        """Error under the last batch's masks over error under random ones, without dropout; NaN
        where these mask nothing.
        """
        model, (inputs, patch_mask) = self.model_wrapped, self.last_batch
        if patch_mask.masks_nothing:
            return patch_mask.mask.new_tensor(math.nan)
        device = patch_mask.mask.device
        # A generator of its own: that the log is written changes nothing in the training.
        generator = torch.Generator(device).manual_seed(self.state.global_step)
        model.eval()
        try:
            return adversarial_gain(
                lambda mask: masked_forward(model, masking=mask, **inputs).error,
                patch_mask,
                generator,
            )
        finally:
            model.train()


@contextmanager
def names_as_saved(model: Any, resumed: str = "") -> Iterator[None]:
    """For the duration, ``model.load_state_dict`` knows the names that ``save_pretrained`` writes.

    transformers 5 writes a ViTMAE under the names of transformers 4, and its Trainer, unlike
    ``from_pretrained``, reads them back as they are: with a warning, it would go on with the
    layers of a fresh model (huggingface/transformers issue 48805, with any Trainer). Where the
    names are the model's own, nothing happens.

    Args:
        model: the Trainer's.
        resumed: the folder of the run that is to go on, whose weights have to be the model's, or
            ``load_state_dict`` raises a ValueError; empty for weights that need not be all.
    """
    own = list(model.state_dict())
    saved: dict[str, str] = {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4
        pass
    else:
        numbered = {name: torch.tensor(number) for number, name in enumerate(own)}
        for name, number in revert_weight_conversion(model, numbered).items():
            saved[name] = own[number]

    def rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in [name for name in state if saved.get(name, name) != name]:
            state[saved[name]] = state.pop(name)
        if resumed and (found := differences(state, model.state_dict())):
            raise ValueError(
                f"{resumed} cannot be resumed: {found}. Nothing was loaded; to start a new run "
                "from its encoder and decoder, give the folder to from_pretrained, and leave out "
                "resume_from_checkpoint"
            )

    with model.register_load_state_dict_pre_hook(rename):
        yield
