"""The one builder of parts: objects, dicts and classes, and what it refuses."""

from __future__ import annotations

import pytest
from torch import nn

from amn_masking import AdversarialMasking
from amn_masking.config import build
from amn_masking.strategies import RandomRatioMasking
from amn_masking.thresholds import THRESHOLDS, Mean, Quantile, Threshold


class Own(Threshold):
    def __init__(self, least, most=0.9):
        super().__init__()
        self.least, self.most = least, most


class Mine(Threshold):
    takes_ratio = True

    def __init__(self, share=0.3, forgotten=1):
        super().__init__()
        self.share = share


def made(given, **defaults):
    return build(given, Threshold, THRESHOLDS, "threshold", **defaults)


def test_an_object_is_taken_as_it_is():
    for part in (Mean(0.7), Own(0.1)):
        assert made(part) is part


def test_a_dict_names_one_that_is_known_or_a_class_of_one_s_own():
    assert isinstance(made(dict(type="mean", scale=0.7)), Mean)
    assert made(dict(type="mean", scale=0.7)).scale == 0.7
    own = made(dict(type=Own, least=0.2))
    assert isinstance(own, Own)
    assert (own.least, own.most) == (0.2, 0.9)


def test_nothing_is_the_first_that_is_known():
    assert isinstance(made(None), Quantile)


def test_the_type_may_be_left_out_where_one_is_known():
    part = build(dict(in_features=2, out_features=3), nn.Module, {"Linear": nn.Linear}, "network")
    assert part.out_features == 3


def test_defaults_are_given_to_those_that_take_them_and_say_nothing():
    assert made(dict(type="mean"), scale=0.7, other=1).scale == 0.7
    assert made(dict(type="mean", scale=0.8), scale=0.7).scale == 0.8
    assert made(dict(type=Own), least=0.3).least == 0.3
    assert made(dict(type=Own, least=0.3), most=0.5).most == 0.9  # which the class says itself


def test_the_config_is_not_changed():
    config = dict(type="mean", scale=0.7, _scope_="mmpretrain")
    made(config)
    assert config == dict(type="mean", scale=0.7, _scope_="mmpretrain")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (dict(scale=2), ValueError, r"unknown threshold type None; expected threshold=dict\(type="),
        (dict(type="median"), ValueError, "'median'.*difficulty.*a subclass of Threshold"),
        (dict(type=nn.Linear), ValueError, "a subclass of Threshold"),
        (dict(type=3), ValueError, "unknown threshold type 3"),
        (
            dict(type="mean", scales=1),
            TypeError,
            "'mean' does not take scales; it takes scale, rat",
        ),
        (dict(type="quantile", q=0.5), TypeError, "does not take q; it takes no arguments"),
        (
            dict(type="quantile", mask_ratio=0.8),
            TypeError,
            "does not take mask_ratio.*the ratio is the strategy's own argument mask_ratio",
        ),
        (dict(type=Own), TypeError, "expected least, got"),
        (Mean, TypeError, r"did you mean Mean\(\)\?"),
        ("mean", TypeError, r"expected a Threshold, or a dict such as threshold=dict\(type='quant"),
        (nn.ReLU(), TypeError, r"got ReLU\(\)"),
    ],
)
def test_what_is_no_such_part_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        made(given)


def test_a_repr_shows_the_arguments_and_the_schedules_that_move():
    masking = AdversarialMasking(0.5, 4, strength=dict(start=0, end=1), threshold=dict(type=Mine))
    text = repr(masking)
    assert "(threshold): Mine(share=0.3)" in text
    assert "estimator=Inclusion(floor=0.05)" in text
    assert "strength=Schedule(start=0, end=1," in text
    assert "mask_ratio=0.5, patch_size=(4, 4)" in text
    assert "loss=" not in text  # a module is printed below, as a child
    assert "ratio_range=(0.5, 0.9)" in repr(RandomRatioMasking(AdversarialMasking()))


class TakesAll(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options


def test_a_class_that_takes_any_argument_is_given_it():
    part = build(dict(type=TakesAll, width=3), nn.Module, {"a": nn.Module}, "network")
    assert part.options == {"width": 3}
