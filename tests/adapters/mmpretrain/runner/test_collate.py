"""mmengine's collate functions under the scope mark of a mmpretrain config."""

from __future__ import annotations

import pickle

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.registry import FUNCTIONS

from amn_masking.adapters.mmpretrain.runner import install


@pytest.mark.parametrize("name", ["default_collate", "pseudo_collate"])
def test_a_scope_mark_on_the_collate_function_does_no_harm(name):
    batch = [dict(inputs=torch.zeros(2)), dict(inputs=torch.ones(2))]
    install()
    collate = FUNCTIONS.get(name)
    marked, plain = collate(batch, _scope_="mmpretrain"), collate(batch)
    assert str(marked) == str(plain)
    assert pickle.loads(pickle.dumps(collate)) is collate  # workers may be spawned
