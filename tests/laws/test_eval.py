"""In ``eval()`` a mask follows from the images, but for strategies that are random by nature."""

from __future__ import annotations

import pytest
import torch

from amn_masking import AdversarialMasking, RandomMasking
from amn_masking.estimators import ESTIMATORS
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    OracleMasking,
    RandomRatioMasking,
    ShuffledMasking,
)
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of

GRID = (8, 8)


def adversarial(**options):
    return AdversarialMasking(None if "threshold" in options else 0.5, SIDE, **options)


DETERMINISTIC = {
    **{
        name: lambda name=name: adversarial(estimator=dict(type=name), random_share=0.25)
        for name in ESTIMATORS
    },
    "mean": lambda: adversarial(threshold=dict(type="mean"), random_share=0.25),
    "tracking": lambda: adversarial(threshold=dict(type="tracking"), random_share=0.25),
    "difficulty": lambda: adversarial(threshold=dict(type="difficulty"), random_share=0.25),
    "hard patches": lambda: HardPatchMasking(0.5, SIDE),
    "attention": lambda: AttentionMasking(0.5, SIDE, 0.5, brightness),
    "oracle": lambda: OracleMasking(0.5, SIDE, brightness),
    "random ratio": lambda: RandomRatioMasking(AdversarialMasking(patch_size=SIDE)),
    "shuffled": lambda: ShuffledMasking(adversarial()),
}
RANDOM_BY_NATURE = {
    "random": lambda: RandomMasking(0.5, SIDE),
    "block": lambda: BlockMasking(0.5, SIDE),
    "color noise": lambda: ColorNoiseMasking(0.5, SIDE),
}
DRAWS_IN_TRAINING = [name for name in DETERMINISTIC if name != "oracle"]


@pytest.mark.parametrize("flat", [False, True], ids=["images", "ties"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_in_eval_the_same_images_get_the_same_masks_and_nothing_is_drawn(name, flat):
    strategy, images = DETERMINISTIC[name](), images_of(GRID, 4)
    for _ in range(3):
        strategy(images)
    images = torch.zeros_like(images) if flat else images
    strategy.eval()
    state = {key: value.clone() for key, value in strategy.state_dict().items()}
    before = torch.get_rng_state()
    one = strategy(images)
    assert torch.equal(torch.get_rng_state(), before)
    for again in (strategy(images), strategy(images, generator(5))):
        assert torch.equal(again.mask, one.mask)
        assert torch.equal(again.ids_shuffle, one.ids_shuffle)
    for key, value in strategy.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", DRAWS_IN_TRAINING)
def test_back_in_training_it_draws_again(name):
    strategy, images = DETERMINISTIC[name](), images_of(GRID, 4)
    strategy.eval()(images)
    strategy.train()
    assert not torch.equal(strategy(images).mask, strategy(images).mask)


@pytest.mark.parametrize("name", RANDOM_BY_NATURE)
def test_those_random_by_nature_draw_in_eval_too_and_say_so(name):
    strategy, images = RANDOM_BY_NATURE[name]().eval(), images_of(GRID, 4)
    assert not torch.equal(strategy(images).mask, strategy(images).mask)
    assert torch.equal(strategy(images, generator(1)).mask, strategy(images, generator(1)).mask)


def test_in_eval_nothing_is_masked_but_by_its_score():
    for name in ("straight_through", "mean", "hard patches"):
        strategy = DETERMINISTIC[name]().eval()
        patch_mask = strategy(images_of(GRID, 4))
        assert patch_mask.learned.drawn_at_random is None
        scores = patch_mask.learned.relative_scores
        for row, masked in zip(scores, patch_mask.mask.bool(), strict=True):
            assert row[masked].min() >= row[~masked].max()


POINTWISE = dict(num_layers=1, kernel_size=1)  # without padding, so that no edge shows
TIES = {
    "adversarial": lambda: adversarial(network=POINTWISE),
    "hard patches": lambda: HardPatchMasking(0.5, SIDE, POINTWISE),
    "attention": DETERMINISTIC["attention"],
    "oracle": DETERMINISTIC["oracle"],
}


@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (6, 10), (16, 16), (13, 21)])
def test_ties_in_eval_are_spread_and_not_in_the_grid_s_order(name, grid):
    """No row, column or half of the image is masked much more than another.

    (By multiples of the golden ratio alone, whole columns were: 8, 13 and 21 are Fibonacci's.)
    """
    strategy, (h, w) = TIES[name]().eval(), grid
    mask = strategy(torch.zeros(2, 3, h * SIDE, w * SIDE)).mask.reshape(2, h, w)
    assert torch.equal(mask[0], mask[1])
    half = mask[0]
    for lines, length in ((half.sum(1), w), (half.sum(0), h)):
        assert ((lines - length / 2).abs() <= 2).all()
    for part in (half[: h // 2], half[:, : w // 2]):
        assert part.mean().item() == pytest.approx(0.5, abs=0.07)


def test_in_eval_hints_are_those_of_every_call():
    strategy, images = AttentionMasking(0.5, SIDE, 0.5, brightness).eval(), images_of(GRID, 4)
    plain = AttentionMasking(0.5, SIDE, 0.0, brightness).eval()(images).mask
    mask = strategy(images).mask
    assert torch.equal(mask, strategy(images).mask)
    assert ((plain - mask).abs().sum(1) == 2 * 16).all()  # half of 32 are shown, 16 others hidden


def test_in_eval_a_random_ratio_is_the_middle_and_the_shuffle_a_roll():
    images = images_of((10, 10), 4)
    strategy = RandomRatioMasking(AdversarialMasking(patch_size=SIDE), (0.2, 0.6)).eval()
    assert (strategy(images).mask.sum(1) == 40).all()
    inner = adversarial().eval()
    shuffled = ShuffledMasking(inner).eval()(images).mask
    assert torch.equal(shuffled, inner(images).mask.roll(1, 0))
