"""Attributes of one instance, replaced for the duration of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def overridden(module: nn.Module, /, **values: Any) -> Iterator[None]:
    """For the duration, attributes of this one instance are replaced; afterwards it is as before.

    Python looks into an instance's own dict before torch looks for a submodule, so a submodule can
    be stood in for by a function and nothing is registered.
    """
    own = vars(module)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            del own[name]
        own.update(before)
