"""A decoder that is not ours, on the seen and the predicted tokens only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amn_masking.adapters.padding import checkpoints_below
from amn_masking.checks import is_compiling
from amn_masking.mask import PatchMask

LEFT_OUT = "prediction_ratio leaves patches out of the decoder"
WAY_OUT = "leave prediction_ratio out"


@contextmanager
def decoded_only(
    first_block: nn.Module,
    prediction: nn.Module,
    patch_mask: PatchMask | Callable[[], PatchMask],
) -> Iterator[None]:
    """For the duration, a decoder does without the patches that are left out; they come out as 0.

    ``gather_decoded`` in front of the first block, where the tokens have their positions, and
    ``scatter_decoded`` behind the prediction. Where nothing is left out nothing is changed.

    Args:
        first_block: its first argument are tokens: those of the prefix, if any, then all L patches.
        prediction: a layer behind the blocks that works on each token by itself, with or without
            those of the prefix. Its output has L patches again.
        patch_mask: the mask of this pass; or what gives it when the decoder runs, where the mask is
            made inside.

    Raises:
        ValueError: the decoder did not call both; inside, from the decoder: other shapes; or
            activation checkpointing would run one of the two again in backward, when this context
            is over.
    """
    recording, depth = torch.is_grad_enabled(), checkpoints_now()
    prefixes: list[int] = []
    put_back: list[bool] = []

    def mask_now() -> PatchMask:
        return patch_mask if isinstance(patch_mask, PatchMask) else patch_mask()

    def check(fits: bool, expected: str, tokens: Tensor) -> None:
        if torch.is_grad_enabled() != recording or checkpoints_now() != depth:
            raise ValueError(
                f"activation checkpointing is on, but {LEFT_OUT}, which it would lose sight of in "
                f"backward; {WAY_OUT}, or switch activation checkpointing off"
            )
        if not fits:
            raise ValueError(f"{LEFT_OUT}, but {expected}, got {tuple(tokens.shape)}; {WAY_OUT}")

    def gather(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        mask = mask_now()
        if mask.num_left_out == 0:
            return None
        name = "" if args else next(iter(kwargs))
        tokens = kwargs[name] if name else args[0]
        prefix = tokens.shape[1] - mask.num_patches
        expected = f"its first block expected all {mask.num_patches} patches, behind a prefix"
        check(prefix >= 0, expected, tokens)
        prefixes.append(prefix)
        decoded = torch.cat([tokens[:, :prefix], mask.gather_decoded(tokens[:, prefix:])], 1)
        return (args, {**kwargs, name: decoded}) if name else ((decoded, *args[1:]), kwargs)

    def scatter(layer: nn.Module, args: tuple, tokens: Tensor) -> Tensor | None:
        mask = mask_now()
        if mask.num_left_out == 0:
            return None
        decoded = mask.num_patches - mask.num_left_out
        prefix = tokens.shape[1] - decoded
        expected = f"its prediction expected {decoded} patches, which came from its first block"
        check(prefix in (0, *prefixes), expected, tokens)
        put_back.append(True)
        return torch.cat([tokens[:, :prefix], mask.scatter_decoded(tokens[:, prefix:])], 1)

    with (
        first_block.register_forward_pre_hook(gather, with_kwargs=True),
        prediction.register_forward_hook(scatter),
    ):
        yield
    if (
        isinstance(patch_mask, PatchMask)
        and patch_mask.num_left_out
        and not (prefixes and put_back)
    ):
        raise ValueError(
            f"{LEFT_OUT}, but it did not call its {type(first_block).__name__} and its "
            f"{type(prediction).__name__}, between which it was expected to run on fewer tokens; "
            f"{WAY_OUT}"
        )


def checkpoints_now() -> int:
    """As :func:`checkpoints_below`; 0 where a compiler traces, which recomputes what it traced."""
    return 0 if is_compiling() else checkpoints_below()
