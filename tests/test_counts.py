"""How many patches: MAE's own count, and what is no ratio."""

from __future__ import annotations

import pytest
import torch

from amn_masking.counts import (
    check_ratio_range,
    count_masked,
    count_range,
    count_visible,
    longest_row,
)


def test_ratio_075_of_14_by_14_keeps_49():
    assert count_visible(196, 0.75) == 49
    assert count_masked(196, 0.75) == 147


def test_the_count_is_not_the_other_formula():
    """L - int(L * r) differs from int(L * (1 - r)) in many cases; ours is the latter."""
    differ = [
        (length, ratio)
        for length in range(2, 401)
        for ratio in (0.1, 0.3, 0.6, 0.7, 0.8, 0.9)
        if int(length * (1 - ratio)) > 0
        and length - int(length * ratio) != int(length * (1 - ratio))
    ]
    assert len(differ) > 100
    for length, ratio in differ:
        assert count_visible(length, ratio) == int(length * (1 - ratio))


def test_counts_reach_both_ends_of_the_range():
    assert count_range(10, (0.0, 1.0)) == (1, 9)
    assert count_range(10, (0.2, 0.7)) == (2, 7)
    assert count_range(3, (0.1, 0.9)) == (1, 2)
    assert count_range(30, (0.1, 0.9)) == (3, 27)  # 0.1 * 30 rounds to just above 3


@pytest.mark.parametrize(("ratio", "missing"), [(0.9, "visible"), (1e-17, "masked")])
def test_a_ratio_that_leaves_nothing_is_refused(ratio, missing):
    with pytest.raises(ValueError, match=f"leaves none {missing}"):
        count_visible(4, ratio)


@pytest.mark.parametrize("bounds", [(0.5, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_a_range_out_of_order_is_refused(bounds):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        check_ratio_range(bounds)


@pytest.mark.parametrize("bounds", [0.5, (0.1, 0.5, 0.9), None])
def test_a_range_that_is_no_pair_is_refused(bounds):
    with pytest.raises(ValueError, match=r"two numbers \(low, high\).*\(0\.05, 0\.95\), got"):
        check_ratio_range(bounds)


def test_the_longest_row_and_the_counts_where_they_differ():
    counts = torch.tensor([3, 7, 5])
    longest, differing = longest_row(counts)
    assert longest == 7
    assert torch.equal(differing, counts)
    assert longest_row(torch.tensor([4, 4])) == (4, None)
