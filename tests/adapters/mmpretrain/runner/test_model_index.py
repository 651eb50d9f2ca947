"""mmpretrain knows the shipped configs by name, from a checkout and from an installed wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmpretrain import get_model, list_models
from mmpretrain.apis import ModelHub

import amn_masking.adapters.mmpretrain
from amn_masking.adapters.mmpretrain.runner.model_index import register_models
from tests.conftest import ROOT, thorough_only
from tests.helpers.mim import TINY, data_options, mim_train, scalars
from tests.methods.matrix import stack

CONFIGS = ROOT / "configs/mmpretrain"
ASK = """
import json
import amn_masking.adapters.mmpretrain
from mmpretrain import list_models, get_model
model = get_model('mae-amn_vit-tiny-p16_photos')
print(json.dumps([amn_masking.__file__, list_models('*amn*'), type(model).__module__,
                  model._config.filename]))
"""


def test_every_shipped_config_has_a_name_and_every_name_a_config():
    found = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.py"))
    # Models are named; the arms of a comparison are not.
    shipped = {CONFIGS / path for path in found if not {"_base_", "evidence"} & set(path.parts)}
    named = [Path(ModelHub._models_dict[name].config) for name in list_models("*amn*")]
    assert len(named) == len(set(named)) == len(shipped)
    assert set(named) == shipped


def test_get_model_gives_what_the_config_says():
    model = get_model("mae-amn_vit-base-p16_8xb512-amp-coslr-300e_in1k")
    assert type(model) is amn_masking.adapters.mmpretrain.MAE
    assert type(model.masking) is amn_masking.AdversarialMasking
    assert model.backbone.pos_embed.shape == (1, 197, 768)


def test_no_name_promises_weights_and_downstream_names_exist():
    models = yaml.safe_load((CONFIGS / "metafile.yml").read_text())["Models"]
    assert [model["Name"] for model in models if "Weights" in model or model["Results"]] == []
    downstream = [name for model in models for name in model.get("Downstream", [])]
    assert len(downstream) == 4
    assert all(ModelHub.has(name) for name in downstream)


def test_registering_again_changes_nothing():
    before = dict(ModelHub._models_dict)
    register_models()
    assert ModelHub._models_dict == before


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of site-packages with an installed wheel of ours, not the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    build = ["wheel", "--no-build-isolation", *offline, "--wheel-dir", place, ROOT]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = place.glob("amn_masking-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", place / "site", wheel], check=True)
    return place / "site"


@thorough_only
@pytest.mark.slow
def test_an_installed_wheel_brings_its_configs(tmp_path, site):
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    package, names, module, config = json.loads(done.stdout.splitlines()[-1])
    assert Path(package) == site / "amn_masking/__init__.py"
    assert names == list_models("*amn*")
    assert module == "amn_masking.adapters.mmpretrain.methods.backbone_masks"
    assert Path(config).is_relative_to(site)


@pytest.mark.slow
@pytest.mark.skipif(
    stack().startswith("forks"), reason="the forks' mim looks in a package's metadata"
)
def test_mim_finds_the_configs_of_an_installed_wheel_by_name(tmp_path, site, photos):
    """In ``.mim``, as OpenMMLab's own packages have them. ``mim download`` asks for weights, of
    which none are published.
    """
    options = TINY | data_options(photos) | {"train_dataloader.dataset.pipeline.1.scale": 64}
    said = mim_train(
        "mae_amn_vit-tiny_photos.py", tmp_path, options, package="amn_masking", site=site
    )
    assert f"will use {site}" in said
    assert scalars(tmp_path)
    found = subprocess.run(
        [str(Path(sys.executable).with_name("mim")), "search", "amn_masking"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert set(re.findall("config id: (.*)", found.stdout)) == set(list_models("*amn*"))
