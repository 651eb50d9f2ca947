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
from amn_masking.network import pool_scores
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


# --- bit for bit: what it was, written for two dimensions alone


def plain_pool(images, factor):
    batch, channels, height, width = images.shape
    rows = images.reshape(batch, channels, height // factor, factor, width).mean(3)
    return rows.unflatten(3, (width // factor, factor)).mean(4)


def plain_patchify(images, side):
    batch, channels, height, width = images.shape
    h, w = height // side[0], width // side[1]
    patches = images.reshape(batch, channels, h, side[0], w, side[1])
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, h * w, -1)


def plain_scores(network, images):
    hidden = plain_pool(images, network.downsample)
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    for layer in network.convolutions:
        if isinstance(layer, torch.nn.Conv2d):
            hidden = F.conv2d(hidden, layer.weight, layer.bias, padding=1)
        else:
            hidden = hidden.relu()
    score_map = hidden.sigmoid()
    return score_map, F.avg_pool2d(score_map, (2, 2)).flatten(1)


def test_the_network_and_its_gradient_are_those_of_two_dimensions_bit_for_bit():
    network, images = MaskingNetwork(downsample=4, channels=8), images_before()
    weight = torch.randn(4, 48, generator=generator(2))
    found = network(images)
    pooled = pool_scores(found, (6, 8))
    score_map, scores = plain_scores(network, images)
    assert torch.equal(found, score_map)
    assert torch.equal(pooled, scores)
    parameters = list(network.parameters())
    for one, other in zip(
        torch.autograd.grad((pooled * weight).sum(), parameters),
        torch.autograd.grad((scores * weight).sum(), parameters),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_patches_pixels_and_ties_are_those_of_two_dimensions_bit_for_bit():
    images, side, grid = images_before(), (8, 16), (6, 4)
    patches = plain_patchify(images, side)
    assert torch.equal(patchify(images, side), patches)
    assert torch.equal(unpatchify(patches, side, grid), images)
    pooled = F.avg_pool2d(images, side).mean(1).flatten(1)
    assert torch.equal(pool_to_patches(images, grid), pooled)
    spread = pooled.reshape(4, 1, 6, 4).repeat_interleave(8, 2).repeat_interleave(16, 3)
    assert torch.equal(spread_to_pixels(pooled, grid, 48, 64), spread)
    pixels = images.unflatten(2, (6, -1)).unflatten(4, (4, -1))
    deviation = pixels - pixels.mean((3, 5), keepdim=True)
    variance = deviation.square_().mean((1, 3, 5)).flatten(1)
    assert torch.equal(patch_variance(images, grid), variance)
    rows, columns = (
        torch.arange(parts, dtype=torch.float64) * step
        for parts, step in zip(grid, (math.sqrt(2), GOLDEN), strict=True)
    )
    ties = (rows[:, None] + columns).frac().flatten().float()
    assert torch.equal(tie_breaks(pooled, grid), ties.expand(4, -1))


def test_the_noise_is_that_of_two_dimensions_bit_for_bit():
    strategy, images, field = ColorNoiseMasking(0.5, 8), images_before(), (12, 16)
    rows, columns = torch.fft.fftfreq(12), torch.fft.rfftfreq(16)
    square = rows[:, None].square() + columns[None, :].square()
    narrow, wide = (torch.exp(-2 * (math.pi * width) ** 2 * square) for width in (0.75, 1.5))
    white = torch.randn(4, *field, generator=generator(8))
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * (narrow - wide), s=field)[:, :6, :8]
    assert torch.equal(strategy.priorities(images, 1, generator(8)), noise.flatten(1))
