"""Every adapter obeys every law of the contract; see tests/contract/laws.py."""

from __future__ import annotations

import pytest

from tests.contract.contract import ABSENT, LAWS, MODULES, load

FOUND = [(module, *load(module)) for module in MODULES]
ROWS = [pytest.param(target, id=target.name) for _, targets, _ in FOUND for target in targets] + [
    pytest.param(None, id=module, marks=pytest.mark.skip(reason=f"{package} is {ABSENT}"))
    for module, _, package in FOUND
    if package
]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("target", ROWS)
def test_contract(target, law):
    """One cell of docs/results/adapters.md."""
    held = LAWS[law](target)
    if held is None:
        pytest.skip(f"{law}: says nothing about {target.name}")
    assert held
