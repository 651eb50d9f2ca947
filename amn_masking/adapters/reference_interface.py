"""What a fork of the reference MAE has to look like; where it does not, what to override."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.adapters.decoded import LEFT_OUT, WAY_OUT
from amn_masking.mask import PatchMask
from amn_masking.patches import normalise_patches

MASKING = (
    "random_masking(self, x, mask_ratio) -> (x_masked, mask, ids_restore), of tokens (B, L, D)"
)
ERROR = "override patch_error(self, imgs, pred) to return the error of each patch, (B, L)"


def own_patch_size(model: Any) -> tuple[int, ...] | None:
    """``model.patch_embed.patch_size`` as a tuple; None where that does not say.

    Raises:
        TypeError: there is no ``patch_embed``, as where several stages embed.
    """
    if not hasattr(model, "patch_embed"):
        raise TypeError(
            f"expected {type(model).__name__} to say by patch_embed.patch_size how large its "
            "patches are, but it has no patch_embed; override mask_patch_size(self) to return "
            "(height, width) in pixels of the patches that it masks, such as (16, 16)"
        )
    size = getattr(model.patch_embed, "patch_size", None)
    return (size, size) if isinstance(size, int) else size


def check_axes(imgs: Tensor, size: Sequence[int], name: str) -> None:
    """Refuse images of another number of axes than the patches have.

    Raises:
        ValueError: such as ``(B, T, C, H, W)`` where the patches are (height, width).
    """
    if imgs.dim() != len(size) + 2:
        raise ValueError(
            f"{name} got images of shape {tuple(imgs.shape)}, but says that its patches are "
            f"{tuple(size)}, of images (B, C, H, W); override mask_patch_size(self) to return a "
            "side for each axis behind (B, C), or, where the axes come in another order, None, "
            "and make_mask(self, imgs) to return the PatchMask of its tokens, such as "
            "self.masking(imgs.transpose(1, 2)) of (B, T, C, H, W), from a strategy of "
            "patch_size=(1, 16, 16)"
        )


@contextmanager
def mask_for_a_ratio(name: str) -> Iterator[None]:
    """For the duration, a model that reckons with the mask in the place of its ratio is told so.

    Raises:
        TypeError: in the place of the one that speaks of a PatchMask.
    """
    try:
        yield
    except (AttributeError, TypeError) as error:
        if "PatchMask" not in str(error):
            raise
        raise TypeError(
            f"{name} reckons with mask_ratio ({error}), but the strategy's mask travels there and "
            f"has to reach {MASKING}, as it is; override the method that reckons, or use "
            "NoiseSeamMixin, under which its own masking runs at a ratio that is a number"
        ) from error


def check_masked(x: Any, patch_mask: PatchMask, name: str) -> None:
    """Refuse what is masked and is not ``(B, L, D)`` tokens, one for each patch of the mask.

    Raises:
        TypeError: no tokens at all.
        ValueError: another number of them.
    """
    if not isinstance(x, Tensor) or x.dim() != 3:
        got = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
        raise TypeError(
            f"{name} calls its random_masking with {got} first, but expected was {MASKING}; use "
            "NoiseSeamMixin, under which its own runs, or override the method that calls it"
        )
    times, rest = divmod(x.shape[1], patch_mask.num_patches)
    if times > 1 and rest == 0:
        raise ValueError(
            f"{name} masks {x.shape[1]} tokens of each image, {times} for each of the strategy's "
            f"{patch_mask.num_patches} patches; override make_mask(self, imgs) to return the "
            f"PatchMask of all its tokens, such as self.masking(imgs).tubes({times}), which hides "
            "a place in all of them, and mask_patch_size(self) to return None"
        )


def check_used(used: Any, patch_mask: PatchMask, name: str, remedy: str) -> None:
    """Compare the mask that a model says it used, ``(B, L)``, with the predicted patches.

    Reads one number back to the host.

    Raises:
        ValueError: it is another, or none.
    """
    asked = patch_mask.predicted
    if not isinstance(used, Tensor) or used.shape != asked.shape:
        shape = tuple(used.shape) if isinstance(used, Tensor) else type(used).__name__
        raise ValueError(
            f"expected {name}'s own forward to return the mask that it used third, (B, L) = "
            f"{tuple(asked.shape)}, got {shape}: whether it used the strategy's cannot be "
            "seen. Override used_mask(outputs) to return it"
        )
    other = int((used != asked).sum())
    if other:
        raise ValueError(
            f"{name} masked other patches than the strategy: {other} of the batch's "
            f"{asked.numel()} differ ({float(used.float().mean()):.3f} masked, asked for "
            f"{float(asked.mean()):.3f}), so the masking network would be rewarded for patches "
            f"that were visible. {remedy}"
        )


def decoder_of(model: Any) -> tuple[nn.Module, nn.Module]:
    """The decoder's first block and its prediction.

    Raises:
        ValueError: it has other names.
    """
    first = next(iter(getattr(model, "decoder_blocks", ())), None)
    prediction = getattr(model, "decoder_pred", None)
    if not isinstance(first, nn.Module) or not isinstance(prediction, nn.Module):
        raise ValueError(
            f"{LEFT_OUT}, which expected a list decoder_blocks of modules and a module "
            f"decoder_pred, but {type(model).__name__} has not got both; {WAY_OUT}"
        )
    return first, prediction


def target_of(model: Any, imgs: Tensor, pred: Any) -> Tensor:
    """``(B, L, D)`` what the reference's loss compares a prediction with, in float32.

    Raises:
        TypeError: the model has no such ``patchify`` and ``norm_pix_loss``, or ``pred`` is no
            tensor.
        ValueError: ``pred`` has another shape.
    """
    name = type(model).__name__
    if not isinstance(pred, Tensor):
        raise TypeError(f"expected {name} to predict a tensor, got {type(pred).__name__}; {ERROR}")
    missing = [part for part in ("patchify", "norm_pix_loss") if not hasattr(model, part)]
    if missing:
        raise TypeError(f"expected {name} to have {' and '.join(missing)}; {ERROR}")
    try:
        target = model.patchify(imgs).float()
    except torch.cuda.OutOfMemoryError:  # a RuntimeError, which is not about the interface
        raise
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as e:
        raise TypeError(
            f"expected patchify(imgs) of {name} to take images {tuple(imgs.shape)} alone, but it "
            f"raised {type(e).__name__}: {e}; {ERROR}"
        ) from e
    if pred.shape != target.shape:
        some = pred.dim() == 3 and pred.shape[::2] == target.shape[::2]
        placed = (
            "; where these are the predicted patches only, override forward in a class between the "
            "mixin and the model's, to return pred with them in their places: "
            "whole = pred.new_zeros(*mask.shape, pred.shape[-1]); "
            "whole[mask.bool()] = pred.flatten(0, 1)"
        )
        raise ValueError(
            f"expected a prediction of shape (B, L, p * p * C) = {tuple(target.shape)}, as "
            f"patchify(imgs) gives, got {tuple(pred.shape)}; {ERROR}{placed if some else ''}"
        )
    return normalise_patches(target) if model.norm_pix_loss else target
