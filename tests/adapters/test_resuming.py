"""What tells a checkpoint's weights from a model's, in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amn_masking import AdversarialMasking, RandomMasking
from amn_masking.adapters.resuming import differences


def state(masking=None, **more):
    model = nn.Module()
    model.encoder = nn.Linear(2, 2)
    model.masking = masking
    for name, module in more.items():
        setattr(model, name, module)
    return model.state_dict()


def learned(**options):
    return AdversarialMasking(0.5, 8, random_share=0.25, **options)


TRACKING = dict(threshold=dict(type="tracking"))


def test_the_same_weights_are_no_difference():
    assert differences(state(learned()), state(learned())) == ""
    assert differences(state(), state(RandomMasking())) == ""


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (state(), state(learned()), r"missing in the file .*comes from a run without masking$"),
        (state(learned()), state(), r"not in the model .*comes from a run with a masking network$"),
        (
            state(learned()),
            state(learned(**TRACKING)),
            r"got \d missing in the file \(masking\.threshold\.[^)]*\)\. The file comes from a "
            r"run with another threshold$",
        ),
        (
            state(learned(**TRACKING)),
            state(learned()),
            r"\d not in the model .*another threshold$",
        ),
        (
            state(learned()),
            state(learned(network=dict(channels=8))),
            r"of another shape .*comes from a run with another masking network$",
        ),
        (
            state(learned()),
            state(learned(network=dict(channels=8), **TRACKING)),
            "another masking network and a run with another threshold$",
        ),
        (state(), state(learned(), more=nn.Linear(2, 2)), r"missing in the file \([^.]*\.[^)]*\)$"),
        (state(more=nn.Linear(1, 1)), state(), r"weights, got 2 not in the model \(more\.bias, "),
    ],
)
def test_what_differs_is_named(found, wanted, message):
    text = differences(found, wanted)
    assert text.startswith(f"expected the model's {len(wanted)} weights, got ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(text)


def test_values_do_not_matter():
    one = state()
    assert differences({name: torch.zeros_like(value) for name, value in one.items()}, one) == ""
