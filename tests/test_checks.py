"""Refusals that several parts share."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import amn_masking
from amn_masking.checks import check_finite, check_tensor
from amn_masking.strategies import adversarial, ranked

MOST = 254  # characters that torch._assert_async takes on CUDA


@pytest.mark.parametrize("value", [None, 1.0, [1.0], np.ones(2)])
def test_what_is_no_tensor_is_refused_by_name(value):
    with pytest.raises(TypeError, match=f"it expected a torch.Tensor, got {type(value).__name__}"):
        check_tensor(value, "it")


@pytest.mark.parametrize("value", [torch.ones(0), torch.nn.Parameter(torch.ones(1))])
def test_a_tensor_is_taken(value):
    check_tensor(value, "it")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_none_is_refused(number):
    values = torch.zeros(3, 4)
    check_finite(values, "said")
    values[1, 2] = number
    with pytest.raises(ValueError, match="said"):
        check_finite(values, "said")


def test_compiled_code_checks_too():
    """There it is an assertion of the device; and no break of the graph."""
    torch._dynamo.reset()

    def checked(values):
        check_finite(values, "said" * 100)
        return values + 1

    compiled = torch.compile(checked, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(3)), torch.ones(3))
    with pytest.raises(RuntimeError, match="said"):
        compiled(torch.full((3,), float("nan")))


class AStrategyOfOneSOwnWithANameThatGoesOnAndOnUntilNobodyCanReadItAnyMore(ranked.RankedMasking):
    def priorities(self, images, num_masked, generator):
        return torch.full((len(images), 16), float("nan"))


def test_every_message_of_what_is_not_finite_fits_on_the_device():
    """Longer ones are cut there, before they say what to do."""
    callers = {
        path.name
        for path in Path(amn_masking.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_finite"
    }
    assert callers == {"adversarial.py", "ranked.py"}  # each is looked at here
    strategy = AStrategyOfOneSOwnWithANameThatGoesOnAndOnUntilNobodyCanReadItAnyMore(0.5, 4)
    with pytest.raises(ValueError, match="expected finite priorities") as raised:
        strategy(torch.randn(2, 3, 16, 16))
    for message in (adversarial.NOT_FINITE, str(raised.value)):
        assert len(message) <= MOST
        assert "masking(images, valid=...)" in message
