"""What every threshold shares: order the patches, cut the order, say where the cut is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from amn_masking.config import settings
from amn_masking.counts import check_enough_valid, count_range, longest_row
from amn_masking.mask import PatchMask
from amn_masking.network import to_logits
from amn_masking.noise import tie_breaks, uniform
from amn_masking.patches import image_means
from amn_masking.schedules import Schedule


@dataclass(eq=False)
class Selection:
    """A hard choice of patches.

    Attributes:
        patch_mask: the mask.
        tau: ``(B, 1)`` the threshold on the scale of the priorities: masked where priority > tau.
            For free counts with the gradient of the scores that it was made from.
        drawn_at_random: ``(B, L)`` bool, patches that were masked at random; None if there are
            none.
        free_counts: whether the count came from tau, and not tau from the count.
    """

    patch_mask: PatchMask
    tau: Tensor
    drawn_at_random: Tensor | None = None
    free_counts: bool = False


@dataclass(eq=False)
class Candidates:
    """What a threshold chooses from: the patches of a batch, and how to choose.

    Attributes:
        priorities: ``(B, L)`` float32, no gradient, the patch logits with any exploration noise;
            larger is masked first.
        grid: (rows, columns) of patches.
        scores: ``(B, L)`` in (0, 1), the scores without noise, with a gradient; None where nothing
            is learned.
        mask_ratio: share to choose, in (0, 1): the strategy's, or its ``prediction_ratio`` where it
            has one; None where the threshold takes none.
        random_share: share in [0, 1] of each image's masked patches to draw uniformly.
        valid: ``(B, L)`` bool, False at patches that must not be chosen; None for all valid.
        deterministic: whether equal priorities are ordered alike in every call.
        generator: source of the tie-breaks and of the random share.
    """

    priorities: Tensor
    grid: tuple[int, ...]
    scores: Tensor | None = None
    mask_ratio: float | None = None
    random_share: float = 0.0
    valid: Tensor | None = None
    deterministic: bool = False
    generator: Generator | None = None

    @property
    def length(self) -> int:
        """Patches per image, L."""
        return self.priorities.shape[1]

    def mean_score(self) -> Tensor:
        """``(B, 1)`` mean score of each image's valid patches, with its gradient.

        Raises:
            ValueError: there are no scores.
        """
        if self.scores is None:
            raise ValueError("this threshold expected scores, which this strategy does not make")
        return image_means(self.scores, self.valid)

    def select(self, num_masked: int | Tensor) -> Selection:
        """Mask each image's patches of highest priority, or a share of them at random.

        Args:
            num_masked: one count for all images, or ``(B,)`` int64.

        Raises:
            ValueError: an image has too few valid patches for that count.
        """
        counts = num_masked[:, None] if isinstance(num_masked, Tensor) else num_masked
        if self.valid is not None:
            check_enough_valid(self.valid, counts)
        ranked, drawn_at_random = self.priorities, None
        if self.random_share > 0:
            noise = uniform(ranked.shape, ranked.device, self.generator)
            if self.valid is not None:
                noise = noise.masked_fill(~self.valid, 2.0)
            drawn_at_random = first_of(noise.argsort(1), self._round(counts))
            ranked = ranked.masked_fill(drawn_at_random, float("inf"))
        if self.valid is not None:
            ranked = ranked.masked_fill(~self.valid, float("-inf"))
        keys = self._keys(ranked)
        if isinstance(num_masked, Tensor):
            hidden = first_of(keys.argsort(1, descending=True), counts)
            num_visible, visible_counts = longest_row(self.length - num_masked)
        else:
            ids = keys.topk(num_masked, sorted=False).indices
            hidden = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, ids, True)
            num_visible, visible_counts = self.length - num_masked, None
        patch_mask = PatchMask.in_order(hidden, num_visible, self.grid, visible_counts, self.valid)
        # The largest priority that stayed visible.
        tau = ranked.masked_fill(hidden, float("-inf")).amax(1, keepdim=True)
        return Selection(patch_mask, tau.to(self.priorities.dtype), drawn_at_random)

    def select_above(self, tau: Tensor, ratio_range: tuple[float, float]) -> Selection:
        """Mask where sigmoid(priority) > tau, with each image's count held within ``ratio_range``.

        Args:
            tau: ``(B, 1)`` on the scale of the scores, (0, 1).
            ratio_range: least and largest share of masked patches.
        """
        tau_logit = to_logits(tau)
        wanted, num_masked = self.count_above(self.priorities, tau_logit, ratio_range)
        selection = self.select(num_masked)
        # Where a bound cut the count, the threshold that is in force is the order statistic.
        selection.tau = torch.where((wanted == num_masked)[:, None], tau_logit, selection.tau)
        selection.free_counts = True
        return selection

    def count_above(
        self, values: Tensor, tau: Tensor, ratio_range: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """``(B,)`` patches whose values, ``(B, L)``, are above tau, ``(B, 1)``; and how many that
        makes to mask, within ``ratio_range`` and the valid patches.
        """
        least, most = count_range(self.length, ratio_range)
        above = values > tau
        if self.valid is None:
            wanted = above.sum(1)
            return wanted, wanted.clamp(least, most)
        wanted = (above & self.valid).sum(1)
        room = (self.valid.sum(1) - 1).clamp(max=most)
        return wanted, torch.minimum(wanted.clamp(min=least), room)

    def _keys(self, priorities: Tensor) -> Tensor:
        """``(B, L)`` int64 in the order of the priorities, with equal ones in another order than
        the grid's: the float32 read as an integer above, the tie-break in the 24 bits below.
        """
        bits = priorities.float().view(torch.int32).long()
        # Of a negative float the other bits count the other way round; -0.0 is 0.0.
        ascending = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
        fixed = self.grid if self.deterministic else None
        ties = tie_breaks(priorities, fixed, self.generator)
        return (ascending << 24) + (ties * (1 << 24)).long()

    def _round(self, counts: int | Tensor) -> Tensor:
        """``(B, 1)`` patches to draw at random, rounded up by chance, so that their mean is exact.

        Rounding to the nearest would draw none of a few patches, ever.
        """
        exact = counts * self.random_share
        whole = exact.floor() if isinstance(exact, Tensor) else math.floor(exact)
        chance = uniform((len(self.priorities), 1), self.priorities.device, self.generator)
        return whole + (chance < exact - whole)


def first_of(order: Tensor, counts: int | Tensor) -> Tensor:
    """``(B, L)`` bool: the first ``counts``, ``(B, 1)``, patches of ``order``, ``(B, L)``."""
    first = (torch.arange(order.shape[1], device=order.device) < counts).expand_as(order)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, first)


class Threshold(nn.Module):
    """Turns the priorities of the patches into a hard choice of some.

    One's own is a subclass whose ``forward`` says how many patches are masked, or above which
    score::

        class HalfOfThem(Threshold):
            def forward(self, candidates):
                return candidates.select(candidates.length // 2)

    Its buffers, numbers that a controller moves in small steps, stay in float32 when the module
    goes to another type.

    Attributes:
        free_counts: whether images of one batch may mask different numbers of patches.
        ratio_range: least and largest share that an image may mask where the counts are free.
        takes_ratio: whether it follows the strategy's ``mask_ratio``, which is refused otherwise.
    """

    free_counts: bool = False
    ratio_range: tuple[float, float] = (0.0, 1.0)
    takes_ratio: bool = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Threshold:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self

    def forward(self, candidates: Candidates) -> Selection:
        """Choose the patches to mask."""
        raise NotImplementedError

    def observe(self, error: Tensor, chosen: PatchMask, drawn_at_random: Tensor | None) -> None:
        """Told of each training step's masks, once: of those whose objective is made first.

        Args:
            error: ``(B, L)`` per-patch error, no gradient, 0 where nothing was chosen.
            chosen: the mask that the error was made under.
            drawn_at_random: ``(B, L)`` bool, patches that were masked at random; None if none.
        """

    def check(self, schedules: Mapping[str, Schedule]) -> None:
        """Raise ValueError for a strategy's settings that this threshold cannot work with.

        Args:
            schedules: of ``random_share``, ``strength`` and the strategy's other numbers, and of
                ``mask_ratio`` where it was given.
        """

    def log_values(self) -> dict[str, Tensor]:
        """Scalars for the log, without a gradient."""
        return {}

    def extra_repr(self) -> str:
        return settings(self)
