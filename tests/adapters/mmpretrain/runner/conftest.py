"""Fixtures of the tests beside it."""

from __future__ import annotations

import pytest


@pytest.fixture
def cfg(photos_config):
    """A short run whose masking network's gradient is multiplied: tests/helpers/loud.py."""
    photos_config.train_cfg.max_epochs = 1
    photos_config.custom_hooks = [dict(type="LoudMaskingHook")]
    return photos_config
