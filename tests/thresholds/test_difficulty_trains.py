"""The difficulty threshold while a real masked autoencoder learns."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from tests.conftest import thorough_only
from tests.helpers.runner import train


@thorough_only
@pytest.mark.slow
def test_the_running_gain_arrives_and_stays(photos_config):
    """On photographs, with mmpretrain's Runner and a network that begins without an opinion."""
    masking = {
        "threshold": dict(type="difficulty", target_gain=1.1),
        "random_share": 0.3,
        "network": dict(downsample=4),
    }
    changes = {f"model.masking.{name}": value for name, value in masking.items()}
    changes |= {"train_cfg.max_epochs": 150, "param_scheduler": []}
    runner = train(photos_config, custom_hooks=[], **changes)
    gain, loss, ratio = (
        torch.tensor(runner.message_hub.get_scalar(f"train/{name}").data[0])
        for name in ("running_gain", "reconstruction", "mask_ratio")
    )
    assert loss[-30:].mean() < 0.85 * loss[:30].mean()
    # A batch has 14 images of 16 patches, so the running gain itself is noisy.
    for part in gain[-200:].split(100):
        assert part.mean().item() == pytest.approx(1.1, abs=0.05)
    assert 0.05 < ratio[-100:].mean() < 0.95
