"""The setting that made features worse is told of, once, and no other."""

from __future__ import annotations

import warnings

import pytest
import torch

from amn_masking import AdversarialMasking
from amn_masking.strategies import ShuffledMasking

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
RISING = dict(type="linear", start=0.25, end=0.75)


def told(masking, calls=3) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            masking(IMAGES)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "settings",
    [
        dict(mask_ratio=0.75),
        dict(mask_ratio=0.7, strength=0.5),
        dict(mask_ratio=0.875, prediction_ratio=0.75),
        dict(strength=dict(type="linear", start=0.6, end=1.0)),
        dict(threshold=dict(type="tracking")),
    ],
)
def test_full_adversary_at_a_large_ratio(settings):
    (message,) = told(AdversarialMasking(patch_size=8, random_share=0.0, **settings))
    assert message.startswith("at a ratio of 0.7")
    assert "random_share=dict(type='linear', start=1.0, end=0.5)" in message


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(mask_ratio=0.375),
        dict(mask_ratio=0.75, prediction_ratio=0.25),
        dict(mask_ratio=RISING),
        dict(strength=-1.0),
        dict(strength=0.0),
        dict(strength=dict(type="linear", start=-1.0, end=1.0)),
        dict(random_share=0.5),
        dict(random_share=dict(type="linear", start=1.0, end=0.0)),
        dict(random_share=dict(type="linear", start=1.0, end=0.5)),
        dict(threshold=dict(type="mean")),
    ],
)
def test_any_other_setting(settings):
    assert told(AdversarialMasking(patch_size=8, **settings)) == []


def test_only_where_it_trains():
    masking = AdversarialMasking(patch_size=8, random_share=0.0)
    assert told(masking.eval()) == []
    with torch.no_grad():
        assert told(masking.train()) == []
    assert len(told(masking)) == 1


def test_within_another_strategy_too():
    (message,) = told(ShuffledMasking(AdversarialMasking(patch_size=8, random_share=0.0)))
    assert message.startswith("at a ratio of 0.75")
