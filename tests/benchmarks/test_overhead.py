"""What the prices of recipes are counted by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmpretrain")

from benchmarks import overhead


class Model(nn.Module):
    """Two linear layers and a square: what goes into each is saved, and the second's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))

    def loss(self, images: Tensor, samples: list) -> Tensor:
        return self.layers(images).square().sum()


@pytest.mark.parametrize("batch", [1, 4])
def test_saved_memory_is_what_the_backward_pass_needs_without_the_weights(batch):
    assert overhead.saved_bytes(Model(), torch.randn(batch, 3)) == 4 * batch * (3 + 5 + 2)


def test_recipes_share_out_the_patches():
    assert overhead.RECIPES["stock"] is None
    assert overhead.CHEAP in overhead.RECIPES
    for (seen, predicted), recipe in zip(
        overhead.PAIRS, list(overhead.RECIPES.values())[1:], strict=True
    ):
        assert recipe["mask_ratio"] == 1 - seen
        assert recipe["prediction_ratio"] == predicted <= 1 - seen


def test_a_missed_target_is_said_and_one_that_was_not_measured_is_not_met():
    row = dict(
        model="base", strategy=overhead.CHEAP, device="cpu", batch="8", amp="False",
        compile="False", flops_ratio="0.7", step_ratio="", memory_ratio="0.95",
    )  # fmt: skip
    assert overhead.recipe_verdicts([row])[-1] == (
        "- base, cpu, batch 8: flops 0.700, step not measured, memory 0.950 **missed**"
    )
