"""What an editor knows of the public calls: ``make lint`` reads this file with mypy, ``make
typecheck`` with pyright. A mistake that they overlook leaves an ignore unused, which is an error.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from typing_extensions import assert_type

from amn_masking import (
    AdversarialMasking,
    CombinedAdversarialLoss,
    MaskingNetwork,
    PatchMask,
    RandomMasking,
)
from amn_masking.learned import LearnedMask


def test_the_calls_of_a_training_step() -> None:
    images = torch.rand(2, 3, 32, 32)
    masking = AdversarialMasking(0.25, patch_size=8, network=dict(downsample=2))
    patch_mask = assert_type(masking(images), PatchMask)
    assert_type(RandomMasking(patch_size=8)(images), PatchMask)
    assert_type(MaskingNetwork()(images), Tensor)
    tokens = torch.rand(2, 16, 4)
    visible = assert_type(patch_mask.gather_visible(tokens), Tensor)
    assert_type(patch_mask.scatter(visible, torch.zeros(4)), Tensor)
    assert_type(patch_mask.learned, LearnedMask | None)
    error = torch.rand(2, 16, requires_grad=True)
    assert_type(masking.total_loss(error.mean(), error, patch_mask), Tensor)
    assert_type(CombinedAdversarialLoss()(tokens, tokens, patch_mask), Tensor)
    assert masking.mask_ratio * 2 == 0.5  # read as a number, set to one or to a schedule
    masking.mask_ratio = dict(type="linear", start=0.5, end=0.75)


def test_a_name_that_does_not_exist_is_marked_while_it_is_typed() -> None:
    with pytest.raises(ValueError, match="unknown reward 'eror'"):
        AdversarialMasking(reward="eror")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="criterion"):
        CombinedAdversarialLoss(criterion="L3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="thresh"):
        AdversarialMasking(thresh="mean")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="images expected a"):
        RandomMasking()("images")  # type: ignore[arg-type]
