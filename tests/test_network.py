"""The masking network and what becomes of its score map."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from amn_masking import MaskingNetwork
from amn_masking.network import area_pool, pool_scores, standardise_logits, to_logits
from tests.helpers import draws


def test_default_is_the_specification_s_network():
    network = MaskingNetwork()
    convolutions = [layer for layer in network.convolutions if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 3
    for layer in convolutions:
        assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
    assert [type(layer) for layer in network.convolutions[1::2]] == [nn.ReLU, nn.ReLU]
    score_map = network(torch.randn(2, 3, 20, 28))
    assert score_map.shape == (2, 1, 20, 28)
    assert ((score_map > 0) & (score_map < 1)).all()


def test_options_shape_the_network():
    network = MaskingNetwork(
        in_channels=1, num_layers=4, channels=5, kernel_size=5, downsample=4, norm="group"
    )
    assert network(torch.randn(1, 1, 16, 32)).shape == (1, 1, 4, 8)
    assert sum(isinstance(layer, nn.GroupNorm) for layer in network.convolutions) == 3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_are_pooled_by_the_mean_of_squares(layout):
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64).contiguous(memory_format=layout)
    pooled = area_pool(images, (4, 4))
    assert pooled.shape == (2, 3, 3, 5)
    for row in range(3):
        for column in range(5):
            part = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            torch.testing.assert_close(pooled[:, :, row, column], part.mean((2, 3)))


@pytest.mark.parametrize("options", [dict(), dict(downsample=4), dict(num_layers=1)])
def test_the_network_is_its_layers_in_plain_torch_one_after_the_other(options):
    torch.manual_seed(0)
    network, images = MaskingNetwork(channels=8, **options), torch.randn(2, 3, 16, 24)
    hidden = F.avg_pool2d(images, network.downsample)
    for layer in network.convolutions:
        if isinstance(layer, nn.Conv2d):
            hidden = F.conv2d(hidden, layer.weight, layer.bias, padding=1)
        else:
            hidden = hidden.relu()
    found, expected = network(images), hidden.sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight, parameters = torch.randn_like(found), list(network.parameters())
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dimensions", "downsample"), [(1, 1), (1, 4), (3, 1), (3, 2), (3, (1, 4, 4))]
)
def test_for_signals_and_clips_it_is_its_layers_in_plain_torch(dimensions, downsample):
    torch.manual_seed(0)
    network = MaskingNetwork(channels=4, downsample=downsample, dimensions=dimensions)
    images = torch.randn(2, 3, *(4, 8, 12)[-dimensions:])
    convolve, pool = {1: (F.conv1d, F.avg_pool1d), 3: (F.conv3d, F.avg_pool3d)}[dimensions]
    hidden = pool(images, downsample)
    for layer in network.convolutions:
        plain = isinstance(layer, nn.ReLU)
        hidden = hidden.relu() if plain else convolve(hidden, layer.weight, layer.bias, padding=1)
    found, expected = network(images), hidden.sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight, parameters = torch.randn_like(found), list(network.parameters())
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert list(network.state_dict()) == list(MaskingNetwork(channels=4).state_dict())


@pytest.mark.parametrize(
    ("images", "dimensions", "message"),
    [
        (torch.zeros(1, 3, 8, 8), 1, r"\(B, 3, T\), got .*; set network=dict\(dimensions=2\)"),
        (torch.zeros(1, 3, 4, 8, 8), 2, r"\(B, 3, H, W\), got .*dict\(dimensions=3\)"),
        (torch.zeros(1, 8, 8, 8, 3), 3, r"channels-last \(B, D, H, W, C\): .*\(0, 4, 1, 2, 3\)"),
        (torch.zeros(1, 99, 3), 1, r"channels-last \(B, T, C\): give images.permute\(0, 2, 1\)"),
        (torch.zeros(1, 8, 3, 8, 8), 3, r"before the channels: give images.transpose\(1, 2\)"),
        (torch.zeros(1, 4, 8, 8, 8), 3, r"\(B, 3, D, H, W\), got .*; set network=dict\(in_chan"),
    ],
)
def test_images_that_are_not_the_network_s_are_refused(images, dimensions, message):
    with pytest.raises(ValueError, match=message):
        MaskingNetwork(dimensions=dimensions)(images)


def test_a_score_map_of_other_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"\(B, 1, D', H', W'\), got \(1, 1, 4, 4\)"):
        pool_scores(torch.zeros(1, 1, 4, 4), (1, 2, 2))


def test_a_patch_score_is_the_mean_of_its_part_of_the_score_map():
    score_map = torch.rand(2, 1, 6, 8)
    scores = pool_scores(score_map, (3, 2))
    for row in range(3):
        for column in range(2):
            part = score_map[:, 0, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4]
            assert torch.allclose(scores[:, 2 * row + column], part.mean((1, 2)))


@given(draws.grids, st.floats(-3, 3), st.floats(0.1, 10), st.floats(0.2, 5), draws.seeds)
def test_standardised_logits_ignore_shift_and_scale(grid, shift, scale, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, math.prod(grid), generator=generator, dtype=torch.float64)
    one = standardise_logits(z, temperature)
    other = standardise_logits(z * scale + shift, temperature)
    assert torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(one.std(1, correction=0) * temperature, torch.ones(2).double(), atol=1e-3)
    assert one.mean(1).abs().max() < 1e-9


def test_constant_scores_stay_equal_with_a_finite_gradient():
    z = torch.full((1, 9), 0.3, requires_grad=True)
    out = standardise_logits(z)
    out.sum().backward()
    # Rounding of the mean, the same for every patch: the order stays open.
    assert (out == out[0, 0]).all()
    assert out.abs().max() < 0.1
    assert torch.isfinite(z.grad).all()


def test_logits_invert_the_sigmoid_and_stay_finite_at_the_ends():
    scores = torch.tensor([0.0, 1e-9, 0.1, 0.5, 0.99, 1.0])
    logits = to_logits(scores)
    assert torch.isfinite(logits).all()
    assert torch.allclose(logits[2:5].sigmoid(), scores[2:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"downsample": 0}, "downsample must be at least 1"),
        ({"downsample": (1, 0)}, "downsample must be at least 1"),
        ({"downsample": (1, 2, 2)}, "one for each of 2 .*\\(H, W\\), got \\(1, 2, 2\\)"),
        (
            {"downsample": (8, 8), "dimensions": 3},
            "one for each of 3 .*\\(D, H, W\\), got \\(8, 8\\)",
        ),
        ({"dimensions": 4}, "dimensions must be 1, 2 or 3, got 4"),
        ({"norm": "batch"}, "None or 'group', got 'batch'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskingNetwork(**options)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 4, 8, 8\); set network="):
        MaskingNetwork()(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("dimensions", "downsample", "size", "sides", "way_out"),
    [
        (1, 4, (6,), "(T) = 6", (2,)),
        (2, 3, (8, 12), "(H, W) = 8 x 12", (1, 3)),
        (3, (2, 8, 8), (3, 16, 24), "(D, H, W) = 3 x 16 x 24", (1, 8, 8)),
    ],
)
def test_downsample_that_does_not_divide_is_refused(dimensions, downsample, size, sides, way_out):
    images = torch.zeros(1, 3, *size)
    said = rf"{downsample} does not divide {sides}, .*network=dict(downsample={way_out})"
    for special in "()":
        said = said.replace(special, "\\" + special)
    with pytest.raises(ValueError, match=said):
        MaskingNetwork(downsample=downsample, dimensions=dimensions)(images)
    MaskingNetwork(downsample=way_out, dimensions=dimensions)(images)


def test_downsample_that_does_not_divide_the_patch_is_refused():
    score_map = MaskingNetwork(downsample=4)(torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match="downsample must divide the patch size"):
        pool_scores(score_map, (2, 2))
