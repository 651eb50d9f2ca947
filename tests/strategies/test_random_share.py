"""How much of a learned mask is drawn at random where nobody says."""

from __future__ import annotations

import copy

import pytest
import torch

from amn_masking import AdversarialMasking
from amn_masking.strategies import RandomRatioMasking, ShuffledMasking

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
GENTLE, NONE = (1.0, 0.5), (0.0, 0.0)
LINE = dict(type="linear", start=0.25, end=0.75)


def ends(masking) -> tuple[float, float]:
    """The share at the start and at the end of the training, as masks are made with it."""
    found = []
    for progress in (0.0, 1.0):
        masking.set_progress(progress)
        masking(IMAGES)
        found.append(masking.random_share)
    return tuple(found)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, GENTLE),
        (dict(mask_ratio=0.7, strength=0.5), GENTLE),
        (dict(mask_ratio=0.9, prediction_ratio=0.75), GENTLE),
        (dict(threshold=dict(type="tracking")), GENTLE),
        (dict(estimator=dict(type="score_function")), GENTLE),
        (dict(estimator=dict(type="score_function"), threshold=dict(type="tracking")), NONE),
        (dict(mask_ratio=0.69), NONE),
        (dict(mask_ratio=0.75, prediction_ratio=0.25), NONE),
        (dict(mask_ratio=LINE), NONE),
        (dict(strength=0.4), NONE),
        (dict(strength=-1.0), NONE),
        (dict(strength=dict(type="linear", start=0.0, end=1.0)), NONE),
        (dict(threshold=dict(type="mean")), NONE),
        (dict(random_share=0.0), NONE),
        (dict(random_share=LINE), (0.25, 0.75)),
    ],
)
def test_it_goes_from_all_to_half_where_an_adversary_masks_as_much_as_mae_does(settings, expected):
    masking = AdversarialMasking(patch_size=8, **settings)
    assert ends(masking) == expected
    assert ends(copy.deepcopy(masking)) == expected
    assert ends(ShuffledMasking(masking)) == expected


def test_it_follows_what_is_set_later_until_it_is_said_itself():
    masking = AdversarialMasking(patch_size=8)
    masking.set_progress(0.5)
    assert masking.random_share == 0.75
    masking.mask_ratio = 0.25
    assert "random_share=0.0" in repr(masking)
    assert masking.random_share == 0.0
    masking.mask_ratio = 0.75
    assert masking.random_share == 0.75
    masking.strength = -1.0
    assert masking.random_share == 0.0
    masking.strength = 1.0
    masking.random_share = 0.1
    masking.mask_ratio = 0.9
    assert masking.random_share == 0.1


def test_the_ratio_of_a_codebase_counts():
    masking = AdversarialMasking(patch_size=8)
    masking.default_ratio = 0.25
    assert ends(masking) == NONE
    assert "random_share=0.0" in repr(masking)


@pytest.mark.parametrize(("ratios", "expected"), [((0.5, 0.9), NONE), ((0.7, 0.9), GENTLE)])
def test_where_the_ratio_is_drawn_its_least_decides_for_all_batches(ratios, expected):
    inner = AdversarialMasking(patch_size=8)
    masking = RandomRatioMasking(ShuffledMasking(inner), ratio_range=ratios)
    for progress, share in zip((0.0, 1.0), expected, strict=True):
        masking.set_progress(progress)
        for _ in range(8):
            masking(IMAGES)
            assert inner.random_share == share


def test_a_range_that_is_set_later_counts():
    inner = AdversarialMasking(patch_size=8)
    masking = RandomRatioMasking(inner, ratio_range=(0.7, 0.9))
    masking(IMAGES)
    assert inner.random_share == 1.0
    masking.ratio_range = (0.2, 0.4)
    masking(IMAGES)
    assert inner.random_share == 0.0
    assert inner.ends("mask_ratio") == (0.2, 0.4)


def test_that_many_are_drawn():
    masking = AdversarialMasking(patch_size=8)
    for progress, share in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        masking.set_progress(progress)
        learned = masking(IMAGES).learned
        drawn = learned.drawn_at_random.sum(1) / learned.chosen.mask.sum(1)
        assert torch.equal(drawn, torch.full((4,), share))
