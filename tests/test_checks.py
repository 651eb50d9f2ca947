"""Refusals that several parts share."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import amn_masking
from amn_masking.strategies import adversarial, ranked

MOST = 254  # characters that torch._assert_async takes on CUDA


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
