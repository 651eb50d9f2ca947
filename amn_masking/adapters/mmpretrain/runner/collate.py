"""mmengine's collate functions, whatever scope a config names them in."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import default_collate, pseudo_collate
from mmengine.registry import FUNCTIONS


# `_base_ = 'mmpretrain::...'` puts mmengine's `_scope_` mark on collate_fn=dict(type=...), and
# mmengine passes it on as an argument, which the stock functions do not take. A user without a
# config of their own cannot mend it, so these stand in. Module-level: workers may be spawned.
def default_collate_any_scope(data_batch: Any, _scope_: str | None = None) -> Any:
    """mmengine's ``default_collate``, whatever scope it was named in."""
    return default_collate(data_batch)


def pseudo_collate_any_scope(data_batch: Any, _scope_: str | None = None) -> Any:
    """mmengine's ``pseudo_collate``, whatever scope it was named in."""
    return pseudo_collate(data_batch)


def install() -> None:
    """Put both in the place of mmengine's; they are the same but for the mark."""
    FUNCTIONS.register_module(name="default_collate", module=default_collate_any_scope, force=True)
    FUNCTIONS.register_module(name="pseudo_collate", module=pseudo_collate_any_scope, force=True)
