"""Images are masked as they were before there were grids of one and three dimensions.

Masks, scores and gradients of seeded strategies, taken from the code before. Integers are compared
exactly; the last bits of a convolution differ from processor to processor, so numbers of floating
point are compared closely here, and bit for bit with the plain two-dimensional forms below.
"""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch.nn import functional as F

from amn_masking import AdversarialMasking, MaskingNetwork, RandomMasking
from amn_masking.estimators import ESTIMATORS
from amn_masking.network import area_pool
from amn_masking.noise import GOLDEN, tie_breaks
from amn_masking.patches import patchify, pool_to_patches, spread_to_pixels, unpatchify
from amn_masking.rewards import patch_variance
from amn_masking.strategies import BlockMasking, ColorNoiseMasking, HardPatchMasking
from tests.helpers.draws import generator

STRATEGIES = {
    "random": lambda: RandomMasking(0.5, 8),
    "block": lambda: BlockMasking(0.5, 8, 4),
    "color noise": lambda: ColorNoiseMasking(0.5, 8),
    "hard patches": lambda: HardPatchMasking(0.5, 8),
    "oblong": lambda: AdversarialMasking(0.5, (16, 8)),
    "left out": lambda: AdversarialMasking(0.75, 8, prediction_ratio=0.25),
    "original loop": lambda: AdversarialMasking(
        None, 8, dict(downsample=1), dict(type="mean"), standardise=False
    ),
    "every option": lambda: AdversarialMasking(
        0.5,
        8,
        dict(norm="group", channels=8),
        random_share=0.3,
        reward="variance_normalised",
        entropy_weight=0.1,
        gate=True,
    ),
    **{
        name: lambda name=name: AdversarialMasking(0.5, 8, estimator=dict(type=name))
        for name in ESTIMATORS
    },
}
BEFORE = {
    "random": ("3914e8cdeba967ab", [], 0.52309483),
    "block": ("a7f16ca1e9c09d7d", [], 0.52309483),
    "color noise": ("481e81cf085efeb0", [], 0.52309483),
    "hard patches": ("258e360690b55dd5", [7.1468757, 13.856406, 1.7495055, 1.5151053], 0.79490399),
    "oblong": ("a63613a9eee2886a", [5.0531471, 9.7979589, 1.1920028, 0.51229706], 0.74545509),
    "left out": ("fce2b899e56cb084", [7.1468757, 13.856406, 1.6365241, 0.58767371], 0.7545619),
    "original loop": (
        "146bd9689997d958",
        [7.2206174, 1.2778445, 1.0420409, 0.01792796],
        0.77773941,
    ),
    "every option": ("c2251143f9c556e2", [7.4239207, 13.856407, 1.3638048, 17.989427], 0.7821064),
    "inclusion": ("62b155206873d6df", [7.1468757, 13.856406, 1.1815123, 0.31889587], 0.77527249),
    "straight_through": (
        "62b155206873d6df",
        [7.1468757, 13.856406, 1.1815123, 0.12731652],
        0.77527249,
    ),
    "gumbel": ("62b155206873d6df", [7.1468757, 13.856406, 1.1815123, 0.10433737], 0.77527249),
    "score_function": (
        "62b155206873d6df",
        [7.1468757, 13.856406, 1.1815123, 2.5444694],
        0.77527249,
    ),
    "ranking": ("62b155206873d6df", [7.1468757, 13.856406, 1.1815123, 1.3212115], 0.77527249),
}


def images_before():
    coarse = torch.randn(4, 3, 6, 8, generator=generator(1))
    fine = torch.randn(4, 3, 48, 64, generator=generator(0))
    return fine + coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


def numbers(name):
    """A digest of masks in training, of masks in eval() under holes; scores and gradients."""
    torch.manual_seed(0)
    strategy, images = STRATEGIES[name](), images_before()
    patch_mask = strategy(images, generator(5))
    error = torch.rand(patch_mask.mask.shape, generator=generator(6)).requires_grad_()
    loss = strategy.total_loss(error.mean(), error, patch_mask)
    (loss + patch_mask.gather_visible(error[:, :, None]).sum()).backward()
    pixels = torch.rand(4, 48, 64, generator=generator(3)) > 0.002
    holes = strategy.eval()(images, generator(7), pixels)
    digest = hashlib.sha256()
    for mask in (patch_mask, holes):
        for integers in (mask.mask, mask.predicted, mask.ids_shuffle, mask.ids_restore):
            digest.update(integers.to(torch.int16).numpy().tobytes())
    floats = []
    if (learned := patch_mask.learned) is not None:
        gradient = torch.cat([p.grad.flatten() for p in strategy.parameters()])
        floats = [learned.patch_scores, learned.logits, learned.threshold, gradient]
    norms = [value.detach().double().norm().item() for value in floats]
    return digest.hexdigest()[:16], norms, loss.item()


@pytest.mark.parametrize("name", STRATEGIES)
def test_masks_scores_and_gradients_are_those_of_before(name):
    digest, norms, loss = numbers(name)
    expected, norms_before, loss_before = BEFORE[name]
    assert digest == expected
    assert norms == pytest.approx(norms_before, rel=1e-5)
    assert loss == pytest.approx(loss_before, rel=1e-5)
