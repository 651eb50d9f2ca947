"""Attributes of one instance, replaced for the duration of a call."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from torch import nn

from amn_masking.adapters.overrides import overridden


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.nothing = 3, None
        self.layer = nn.Linear(2, 2)

    def method(self):
        return "the class's"


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_instance_is_as_before(fails):
    """Its own attributes, one whose value is None among them, methods of its class, submodules."""
    host = Host()
    before, layer = dict(vars(host)), host.layer
    with pytest.raises(RuntimeError) if fails else nullcontext():  # noqa: SIM117
        with overridden(host, own=4, nothing=5, method=lambda: "ours", layer="a function"):
            assert (host.own, host.nothing, host.method(), host.layer) == (
                4, 5, "ours", "a function",
            )  # fmt: skip
            assert set(host.state_dict()) == {"layer.weight", "layer.bias"}
            if fails:
                raise RuntimeError
    assert vars(host) == before
    assert host.nothing is None
    assert host.layer is layer
    assert host.method() == "the class's"


def test_one_within_the_other_ends_in_turn():
    host = Host()
    with overridden(host, own=4):
        with overridden(host, own=5):
            assert host.own == 5
        assert host.own == 4
    assert host.own == 3


def test_other_instances_are_left_alone():
    host, other = Host(), Host()
    with overridden(host, own=4):
        assert other.own == 3
