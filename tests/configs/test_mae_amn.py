"""The shipped configs say what their comments say."""

from __future__ import annotations

import pytest

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "ratio", "share"),
    [("mae_amn_vit-b", 0.75, (1.0, 0.5)), ("mae_amn_vit-tiny_photos", 0.25, (0.0, 0.0))],
)
def test_shipped_configs_mask_as_they_say(name, ratio, share):
    cfg = Config.fromfile(ROOT / f"configs/mmpretrain/{name}.py")
    model = MMPRETRAIN_MODELS.build(cfg.model)
    assert model.masking.mask_ratio == ratio
    drawn = model.masking.schedules["random_share"]
    assert (drawn.start, drawn.end) == share
    schedule = model.masking.schedules["strength"]
    assert (schedule.start, schedule.end) == (1.0, 1.0)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.masking.decay_mult == 0.0
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.mask_token.decay_mult == 0.0
