"""The constant threshold: the original loop's ``scores > value``."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking
from amn_masking.thresholds import Constant
from tests.helpers import draws
from tests.helpers.pictures import images_of
from tests.helpers.selections import choose, masks_of


@given(st.floats(0.2, 0.8), draws.seeds)
def test_a_patch_is_masked_where_its_score_is_above_the_value(value, seed):
    scores = torch.rand(4, 30, generator=draws.generator(seed)) * 0.98 + 0.01
    selection = choose(Constant(value, (0, 1)), torch.logit(scores), scores, (5, 6))
    wanted = scores > value
    inside = (wanted.sum(1) >= 1) & (wanted.sum(1) <= 29)
    assert torch.equal(selection.patch_mask.mask.bool()[inside], wanted[inside])
    assert selection.free_counts
    assert torch.allclose(selection.tau[inside].sigmoid(), torch.tensor(value), atol=1e-5)


@pytest.mark.parametrize(("level", "count"), [(5.0, 18), (-5.0, 2)])
def test_outside_the_range_the_nearest_bound_counts(level, count):
    logits = level + 0.1 * torch.randn(3, 20)
    mask = masks_of(Constant(ratio_range=(0.1, 0.9)), logits, (4, 5))
    assert (mask.sum(1) == count).all()
    for row in range(3):
        assert mask[row].bool()[logits[row].topk(count).indices].all()


def test_it_takes_no_ratio_and_no_value_that_is_no_score():
    with pytest.raises(ValueError, match=r"Constant.*takes no mask_ratio"):
        AdversarialMasking(0.5, threshold=dict(type="constant"))
    for value in (0, 1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"value is a score, in \(0, 1\)"):
            Constant(value)


def test_through_the_strategy_by_its_name():
    threshold = dict(type="constant", value=0.45)
    masking = AdversarialMasking(patch_size=4, threshold=threshold, standardise=False).eval()
    patch_mask = masking(images_of((6, 6), batch=4))
    wanted = patch_mask.learned.patch_scores > 0.45
    inside = (wanted.sum(1) >= 2) & (wanted.sum(1) <= 34)
    assert torch.equal(patch_mask.mask.bool()[inside], wanted[inside])
