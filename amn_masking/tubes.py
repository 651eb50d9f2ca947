"""Tubes: one mask of the places of a frame, repeated in every time slot of a clip."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from amn_masking.learned import LearnedMask
    from amn_masking.mask import PatchMask


def tubes_of(patch_mask: PatchMask, slots: int) -> PatchMask:
    """The same mask in every time slot of a clip: all frames are masked alike.

    Tong et al., "VideoMAE" (arXiv:2203.12602): neighbouring frames differ little, so a patch that
    is visible at another time would tell what is hidden now. A strategy whose masks these are is
    :class:`~amn_masking.strategies.TubeMasking`.

    Make the mask on patches as deep as the clip: a strategy with ``patch_size=(frames, height,
    width)`` and the whole clip. Its scores are then the mean of a score map of the whole clip over
    each tube, so the masking network sees what moves; the mean over time of the clip itself, a
    cheaper input, blurs just that. ``valid`` and the variance of the reward are likewise those of
    whole tubes. A mask of the places of one frame, made in any other way, is taken too.

    Args:
        patch_mask: of grid (1, rows, columns) or (rows, columns).
        slots: time slots of the encoder, frames over the frames of one of its patches; at least 1.

    Returns:
        The mask ``(B, slots * L)`` of grid (slots, rows, columns). In ``ids_shuffle`` the visible,
        the predicted and the left-out patches are in the order of the grid each. The error of a
        tube, which rewards the masking network, is the mean over its slots.

    Raises:
        ValueError: no such grid, or no such number of slots.
    """
    grid = patch_mask.grid
    places = grid[1:] if len(grid) == 3 and grid[0] == 1 else grid
    if len(places) != 2:
        raise ValueError(
            f"tubes expected a mask of the places of a frame, of grid (rows, columns) or (1, rows, "
            f"columns), got {grid}; give the strategy patches as deep as the clip, "
            "patch_size=(frames, height, width)"
        )
    if type(slots) is not int or slots < 1:
        raise ValueError(f"tubes expected a number of time slots, at least 1, got {slots!r}")
    counts, valid, count = patch_mask.visible_counts, patch_mask.valid, patch_mask.num_predicted
    repeated = patch_mask.in_order(
        patch_mask.mask.bool().repeat(1, slots),
        slots * patch_mask.num_visible,
        (slots, *places),
        None if counts is None else slots * counts,
        repeat(valid, slots),
        patch_mask.predicted.bool().repeat(1, slots),
        None if count is None else slots * count,
    )
    learned = patch_mask.learned
    made = None if learned is None else learned_tubes(learned, slots)
    return replace(repeated, learned=made, slots=slots)


def learned_tubes(learned: LearnedMask, slots: int) -> LearnedMask:
    """What a learning strategy made beside the mask, for the mask of all slots."""
    chosen, score_map = learned.chosen.tubes(slots), learned.score_map
    if len(learned.chosen.grid) < len(chosen.grid):
        score_map = score_map.unsqueeze(2)
    return replace(
        learned,
        chosen=chosen,
        logits=learned.logits.repeat(1, slots),
        surrogate=learned.surrogate.repeat(1, slots),
        patch_scores=learned.patch_scores.repeat(1, slots),
        score_map=score_map,
        chances=repeat(learned.chances, slots),
        drawn_at_random=repeat(learned.drawn_at_random, slots),
        reward_scale=repeat(learned.reward_scale, slots),
        one_slot=learned,
    )


def repeat(values: Tensor | None, slots: int) -> Tensor | None:
    """``(B, L)`` to ``(B, slots * L)``; None stays None."""
    return None if values is None else values.repeat(1, slots)
