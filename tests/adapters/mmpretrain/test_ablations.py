"""What people type to compare a shipped config with something else, and lazy configs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

import mmpretrain
import torch
from mmengine.config import DictAction
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.registry import MODELS

from amn_masking import MaskingStrategy, strategies
from tests.conftest import ROOT
from tests.helpers.runner import train
from tests.helpers.small_mae import build, config, step


def typed(*options: str) -> dict:
    """``--cfg-options`` as the command line reads them."""
    pairs = (option.split("=", 1) for option in options)
    return {key: DictAction._parse_iterable(value) for key, value in pairs}


@pytest.mark.parametrize("kind", ["RandomMasking", "BlockMasking", "HardPatchMasking"])
def test_another_strategy_on_a_shipped_config(photos_config, kind, tmp_path):
    """It takes what it knows, and the log says what was left out."""
    runner = train(photos_config, **typed(f"model.masking.type={kind}"))
    assert type(runner.model.masking).__name__ == kind
    assert runner.model.masking.mask_ratio == 0.25
    (log,) = tmp_path.glob("*/*.log")
    (line,) = (line for line in log.read_text().splitlines() if f"masking.type is {kind}" in line)
    assert "estimator={'type': 'inclusion'}" in line
    assert line.endswith("left out")


@pytest.mark.parametrize("kind", ["AdversarialMasking", "RandomMasking"])
def test_a_part_of_the_masked_patches_is_predicted_on_a_shipped_config(photos_config, kind):
    """Of 16 patches 4 are seen and 4 predicted: the decoder runs on them and the class token."""
    tokens = []

    @HOOKS.register_module(force=True)
    class CountTokensHook(Hook):
        def before_train(self, runner):
            runner.model.neck.decoder_norm.register_forward_hook(
                lambda module, args, out: tokens.append(out.shape[1])
            )

    ratios = ("model.masking.mask_ratio=0.75", "model.masking.prediction_ratio=0.25")
    photos_config.custom_hooks = [dict(type="CountTokensHook")]
    options = typed(f"model.masking.type={kind}", *ratios)
    runner = train(photos_config, **options, **{"train_cfg.max_epochs": 1})
    assert tokens == [1 + 4 + 4] * runner.iter
    for name, ratio in (("mask_ratio", 0.75), ("prediction_ratio", 0.25)):
        logged = runner.message_hub.get_scalar(f"train/{name}").data[0]
        assert (logged == ratio).all()


WRAPPERS = ("RandomRatioMasking", "ShuffledMasking")


OF_IMAGES = sorted(set(strategies.__all__) - {"MaskingStrategy", "TubeMasking"})


@pytest.mark.parametrize("kind", OF_IMAGES)
def test_every_strategy_is_told_what_is_predicted(kind):
    masking = dict(type=kind, prediction_ratio=0.25)
    if kind in WRAPPERS:
        masking = dict(type=kind, masking=masking | dict(type="RandomMasking"))
    losses, _ = step(build(masking=masking))
    assert losses["mask_ratio"] > losses["prediction_ratio"] == 0.25


class LeftToRight(strategies.ranked.RankedMasking):
    def __init__(self, patch_size=16):
        super().__init__(0.75, patch_size)

    def priorities(self, images, num_masked, generator):
        rows, columns = self.grid(images)
        return torch.arange(columns).expand(len(images), rows, -1).flatten(1).float()


@pytest.mark.parametrize("kind", [*WRAPPERS, LeftToRight])
def test_a_strategy_without_the_argument_is_told_too(kind):
    masking = dict(type=kind, prediction_ratio=0.25)
    if kind in WRAPPERS:
        masking["masking"] = dict(type="RandomMasking")
    assert step(build(masking=masking))[0]["prediction_ratio"] == 0.25


def test_what_no_strategy_takes_is_still_refused():
    with pytest.raises(TypeError, match="mask_ration"):
        build(masking=dict(type="RandomMasking", mask_ration=0.5))


def test_no_masks_on_a_shipped_config(photos_config, tmp_path):
    runner = train(photos_config, **typed("model.masking=None"))
    assert runner.model.masking is None
    assert runner.iter == 6
    (log,) = tmp_path.glob("*/*.log")
    assert log.read_text().count("rests in this run") == 2


@pytest.mark.slow
def test_mmpretrain_s_tool_draws_the_learning_rates_of_a_shipped_config(tmp_path):
    """The photographs'; the others' mixed precision asks for an accelerator."""
    name = "mae_amn_vit-tiny_photos"
    tool = Path(mmpretrain.__file__).parent / ".mim/tools/visualization/vis_scheduler.py"
    picture = tmp_path / "lr.png"
    command = [
        sys.executable, tool, ROOT / f"configs/mmpretrain/{name}.py", "--not-show", "-d", "64",
        "--ngpus", "1", "--save-path", picture,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert picture.exists()


def test_lazy_configs_name_the_class():
    """The drop-in works by name; a lazy config has classes, so it names this package's."""
    from mmpretrain.models import MAE as STOCK

    from amn_masking.adapters.mmpretrain import MAE

    lazy = config(type=MAE, masking=dict(type="RandomMasking"))
    assert isinstance(MODELS.build(lazy).masking, MaskingStrategy)
    with pytest.raises(TypeError, match="masking"):
        MODELS.build(lazy | dict(type=STOCK))


CLASH = """
import torch
from mmpretrain.registry import MODELS

@MODELS.register_module()
class RandomMasking(torch.nn.Module):
    pass

from tests.helpers.small_mae import build, config
model = build(masking=dict(type="amn_masking.RandomMasking"))
print(type(model.masking).__module__)
for _ in range(2):
    try:
        build(masking=dict(type="RandomMasking"))
    except TypeError as error:
        print(error)
"""


def test_a_class_of_the_user_s_with_the_name_of_one_of_ours_stays():
    command = [sys.executable, "-c", CLASH]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "amn_masking.strategies.random" in done.stdout
    said = "'RandomMasking' is __main__.RandomMasking in mmpretrain's registry, and stays so"
    assert (done.stdout + done.stderr).count(said) == 1
    refused = "masking=__main__.RandomMasking is not a masking strategy"
    assert done.stdout.count(refused) == 2
