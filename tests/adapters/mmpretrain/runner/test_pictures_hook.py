"""Hooks in a real Runner, in this process, on real image files."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

import imageio.v3 as iio

from amn_masking.adapters.mmpretrain.runner.pictures_hook import MaskingPicturesHook
from tests.helpers.runner import train


def drawn(tmp_path):
    return sorted(path.name for path in tmp_path.glob("*/vis_data/vis_image/*.png"))


def test_by_epoch_draws_at_the_start_every_epoch_and_never_twice(photos_config, tmp_path):
    train(photos_config, custom_hooks=[dict(type="MaskingPicturesHook", interval=1)])
    assert drawn(tmp_path) == ["masking_0.png", "masking_3.png", "masking_6.png"]


def test_by_iteration_and_at_the_end(photos_config, tmp_path):
    hook = dict(type="amn_masking.MaskingPicturesHook", interval=4, by_epoch=False, num_images=2)
    train(photos_config, custom_hooks=[hook])
    assert drawn(tmp_path) == ["masking_0.png", "masking_4.png", "masking_6.png"]
    (path,) = tmp_path.glob("*/vis_data/vis_image/masking_6.png")
    picture = iio.imread(path)
    assert picture.shape[2] == 3
    # Four columns of two rows under a line of titles, and not one flat colour.
    assert 1.5 < picture.shape[1] / picture.shape[0] < 2
    assert picture.std() > 20


def test_drawing_does_not_change_the_training(photos_config, tmp_path):
    hook = dict(type="MaskingPicturesHook", interval=1, by_epoch=False)
    with_pictures = train(photos_config, custom_hooks=[hook]).model
    without = train(photos_config, custom_hooks=[]).model
    other_seed = train(photos_config, custom_hooks=[], randomness=dict(seed=1)).model
    for (name, a), b in zip(
        with_pictures.state_dict().items(), without.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert with_pictures.training
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            without.state_dict().values(), other_seed.state_dict().values(), strict=True
        )
    )


def test_the_strength_schedule_follows_the_runner(photos_config):
    schedule = dict(type="linear", start=-1.0, end=1.0)
    runner = train(photos_config, custom_hooks=[], **{"model.masking.strength": schedule})
    last = runner.max_iters - 1
    assert runner.model.masking.strength == pytest.approx(-1 + 2 * last / runner.max_iters)


def test_without_masking_the_hook_rests_and_says_so(photos_config, tmp_path):
    train(photos_config, custom_hooks=[dict(type="MaskingPicturesHook")], **{"model.masking": None})
    (log,) = tmp_path.glob("*/*.log")
    assert "MaskingPicturesHook rests in this run: MAE has no masking=" in log.read_text()


@pytest.mark.parametrize("option", ["interval", "num_images"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        MaskingPicturesHook(**{option: 0})
