"""What the laws of tests/contract/laws.py are stated over, and how they compare."""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking import AdversarialMasking, PatchMask
from amn_masking.patches import grid_size, patch_sides
from tests.contract.targets.target import Target

RATIO, STOCK_RATIO, BATCH = 0.5, 0.75, 3


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Same shape, and the same numbers up to a share of the largest."""
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return False
    got, expected = got.detach(), expected.detach()
    largest = max(float(expected.abs().max()), 1e-3)
    return float((got.float() - expected.float()).abs().max()) <= tolerance * largest


def model_of(target: Target) -> nn.Module:
    """The stock model. No weight stays at 0, so that a token in a wrong place shows."""
    torch.manual_seed(0)
    model = target.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def images_of(target: Target) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 3, *target.image_size, generator=generator)


def learned(target: Target, **options: Any) -> AdversarialMasking:
    """A strategy with weights that are the same in every call."""
    torch.manual_seed(2)
    return AdversarialMasking(**dict(mask_ratio=RATIO, patch_size=target.patch_size) | options)


def grid_of(target: Target) -> tuple[int, ...]:
    return grid_size(target.image_size, patch_sides(target.patch_size))


def shuffled(target: Target, ratio: float) -> tuple[Tensor, PatchMask]:
    """``(B, L)`` noise and the mask that keeps the patches of least noise."""
    grid = grid_of(target)
    length = math.prod(grid)
    noise = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(3))
    return noise, PatchMask.from_shuffle(noise.argsort(1), int(length * (1 - ratio)), grid)


def some_left_out(patch_mask: PatchMask) -> PatchMask:
    """The same visible patches; of the masked ones half are predicted and half left out."""
    num_masked = patch_mask.num_patches - patch_mask.num_visible
    return replace(patch_mask, num_predicted=num_masked // 2)


def also_with_some_left_out(law: Callable[..., bool | None]) -> Callable[[Target], bool | None]:
    """The law holds where all masked patches are predicted, and where some are left out, if they
    may be.
    """

    @functools.wraps(law)
    def both(target: Target) -> bool | None:
        options = [{}, dict(prediction_ratio=RATIO / 2)][: 1 + target.leaves_out]
        found = [law(target, **some) for some in options]
        return None if None in found else all(found)

    return both


def visible(target: Target, tokens: Tensor, patch_mask: PatchMask) -> Tensor:
    """Of ``(B, P + L, D)`` tokens the prefix, then those that the mask keeps."""
    ids = patch_mask.ids_keep.sort(1).values if target.row_major else patch_mask.ids_keep
    patches = tokens[:, target.prefix :].take_along_dim(ids[:, :, None], 1)
    return torch.cat([tokens[:, : target.prefix], patches], 1)


def refused(pattern: str, step: Callable[[], object]) -> bool:
    """Whether it raises a ValueError whose message has the pattern."""
    try:
        step()
    except ValueError as error:
        return re.search(pattern, str(error)) is not None
    return False


def gradients(loss: Tensor, masking: AdversarialMasking) -> Tensor:
    """Of the loss, for all weights of the masking network in a row; 0 where there is none."""
    weights = list(masking.network.parameters())
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    pairs = zip(found, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])


def looked_at(model: nn.Module, but: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
    """Everything that hangs on a module, and copies of all tensors in the state."""
    seen: dict[tuple[str, ...], Any] = {
        ("state", name): value.clone() for name, value in model.state_dict().items()
    }
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in but:
                shallow = copy.copy(value) if isinstance(value, dict | list) else value
                seen[path, name] = shallow
    return seen


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(before[k] is after[k] for k in before)
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    return before is after or bool(before == after)
