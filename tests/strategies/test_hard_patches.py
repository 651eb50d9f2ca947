"""Hard-patch mining."""

from __future__ import annotations

import torch

from amn_masking.strategies import (
    HardPatchMasking,
)
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of


def test_hard_patches_move_from_random_to_half_by_score():
    strategy, images = HardPatchMasking(0.5, SIDE), images_of((8, 8), 300)
    for progress, by_score in ((0.0, 0), (0.5, 8), (1.0, 16)):
        strategy.set_progress(progress)
        patch_mask = strategy(images, generator(0))
        assert (patch_mask.learned.drawn_at_random.sum(1) == 32 - by_score).all()


def test_hard_patches_learn_the_order_of_the_errors():
    torch.manual_seed(0)
    strategy = HardPatchMasking(0.5, SIDE, random_share=0.5)
    optimizer = torch.optim.Adam(strategy.parameters(), lr=0.01)
    images = images_of((6, 6), 32)

    def agreement():
        scores = strategy.eval()(images).learned.relative_scores
        strategy.train()
        pairs = (scores[:, :, None] > scores[:, None]) == (
            brightness(images)[:, :, None] > brightness(images)[:, None]
        )
        return pairs.float().mean().item()

    before = agreement()
    for _ in range(60):
        patch_mask = strategy(images)
        loss = strategy.total_loss(torch.zeros(()), brightness(images).exp(), patch_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert agreement() > 0.85 > 0.7 > before
