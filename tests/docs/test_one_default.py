"""The bare strategy, the shipped config for photographs, README and docs are one setting."""

from __future__ import annotations

import re

import pytest

from amn_masking import AdversarialMasking
from tests.conftest import ROOT

BARE = str(AdversarialMasking(patch_size=16))


def test_the_shipped_config_and_a_bare_one_in_mmpretrain():
    pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
    from mmengine.config import Config
    from mmpretrain.registry import MODELS

    cfg = Config.fromfile(ROOT / "configs/mmpretrain/mae_amn_vit-b.py").model
    shipped = str(MODELS.build(cfg).masking)
    cfg.masking = dict(type="AdversarialMasking")
    assert shipped == str(MODELS.build(cfg).masking) == BARE


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("README.md", "model"),
        ("docs/mmpretrain.md", "model"),
        ("docs/choosing.md", "photographs"),
    ],
)
def test_what_a_page_shows_first(page, name):
    block = next(
        part.split("```")[0]
        for part in (ROOT / page).read_text().split("```python\n")[1:]
        if f"\n{name} = " in part.split("```")[0]
    )
    names: dict = {}
    exec(block, names)
    found = names[name]
    if name == "model":
        settings = dict(found["masking"])
        assert settings.pop("type") == "AdversarialMasking"
        found = AdversarialMasking(**settings)
    assert str(found) == BARE


@pytest.mark.parametrize(
    "page",
    ["timm", "huggingface", "lightly", "reference_mae", "stable_pretraining"],
)
def test_what_an_adapter_s_page_assigns(page):
    text = (ROOT / f"docs/{page}.md").read_text()
    first = re.search(r"masking = AdversarialMasking\((.*)\)\n", text)
    assert first
    assert re.fullmatch(r"patch_size=[^,]*", first[1])
    assert ".set_progress(" in text  # without it the bare strategy stays random
