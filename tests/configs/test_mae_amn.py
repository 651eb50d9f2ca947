"""The shipped configs say what their comments say."""

from __future__ import annotations

import pytest

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["mae_amn_vit-b", "mae_amn_vit-tiny_photos"])
def test_shipped_configs_pair_ratio_and_strength_as_they_say(name):
    cfg = Config.fromfile(ROOT / f"configs/mmpretrain/{name}.py")
    model = MMPRETRAIN_MODELS.build(cfg.model)
    assert model.masking.mask_ratio == 0.25
    schedule = model.masking.schedules["strength"]
    assert (schedule.start, schedule.end) == (1.0, 1.0)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.masking.decay_mult == 0.0
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.mask_token.decay_mult == 0.0
