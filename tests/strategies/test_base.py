"""Laws of every strategy, and what strategies refuse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking, RandomMasking
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    MaskingStrategy,
    OracleMasking,
    RandomRatioMasking,
)
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of, patch_of

RANKED = {
    "block": BlockMasking,
    "red": lambda ratio, side: ColorNoiseMasking(ratio, side, "red"),
    "green": lambda ratio, side: ColorNoiseMasking(ratio, side, "green"),
    "blue": lambda ratio, side: ColorNoiseMasking(ratio, side, "blue"),
    "purple": lambda ratio, side: ColorNoiseMasking(ratio, side, "purple"),
    "attention": lambda ratio, side: AttentionMasking(ratio, side, attention=brightness),
    "hint": lambda ratio, side: AttentionMasking(ratio, side, 0.3, attention=brightness),
    "oracle": lambda ratio, side: OracleMasking(ratio, side, brightness),
    "hard patches": HardPatchMasking,
}


def enough(length, ratio):
    """Whether a learning strategy may train on that many masked patches: more than one."""
    return length - draws.visible_reference(length, ratio) > 1


NOISE = ("block", "red", "green", "blue", "purple")


@pytest.mark.parametrize("kind", RANKED)
@given(case=draws.lengths_and_ratios(), batch=draws.batches, seed=draws.seeds)
def test_the_count_is_mae_s_own_and_the_mask_a_mask(kind, case, batch, seed):
    grid, ratio = case
    assume(kind != "block" or len(grid) == 2)
    strategy, images = RANKED[kind](ratio, patch_of(grid)), images_of(grid, batch, seed)
    length = math.prod(grid)
    strategy.train(enough(length, ratio))
    patch_mask = strategy(images, generator(seed))
    assert patch_mask.grid == grid
    assert ((patch_mask.mask == 0) | (patch_mask.mask == 1)).all()
    assert ((patch_mask.mask == 0).sum(1) == draws.visible_reference(length, ratio)).all()
    assert patch_mask.visible_counts is None
    assert torch.equal(
        patch_mask.ids_shuffle.sort(1).values, torch.arange(length).expand(batch, -1)
    )
    again = strategy(images, generator(seed))
    assert torch.equal(again.mask, patch_mask.mask)


@pytest.mark.parametrize("kind", [*NOISE, "hint", "hard patches"])
def test_the_generator_is_the_only_source_of_randomness(kind):
    strategy, images = RANKED[kind](0.5, SIDE), images_of((8, 8), 4)
    one = strategy(images, generator(1)).mask
    assert not torch.equal(one, strategy(images, generator(2)).mask)
    state = torch.get_rng_state()
    strategy(images, generator(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    two = strategy(images).mask
    torch.manual_seed(5)
    assert torch.equal(strategy(images).mask, two)


@pytest.mark.parametrize("kind", NOISE)
def test_images_of_a_batch_are_masked_independently(kind):
    """The share of masks that agree at a position is that of two batches."""
    strategy = RANKED[kind](0.5, SIDE)
    mask = strategy(images_of((6, 6), 4000), generator(0)).mask
    pairs = (mask[0::2] * mask[1::2]).mean().item()
    assert pairs == pytest.approx((mask.mean(0) ** 2).mean().item(), abs=0.01)


@pytest.mark.parametrize("kind", NOISE)
def test_no_row_or_column_is_masked_in_any_other_way_than_its_mirror_image(kind):
    """A trim or a fill in row-major order would show as a slope."""
    strategy = RANKED[kind](0.6, SIDE)
    share = strategy(images_of((6, 8), 20000), generator(1)).mask.mean(0).reshape(6, 8)
    error = 5 * math.sqrt(0.25 / 20000)
    for turned in (share.flip(0), share.flip(1)):
        assert (share - turned).abs().max() < 2 * error


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BlockMasking(min_patches=0), ValueError, "min_patches must be at least 1"),
        (lambda: BlockMasking(min_aspect=1.5), ValueError, r"min_aspect must lie in \(0, 1\]"),
        (
            lambda: ColorNoiseMasking(color="pink"),
            ValueError,
            "red, green, blue, purple, got 'pink",
        ),
        (lambda: ColorNoiseMasking(low=2.0), ValueError, "0 < low < high, got 2.0 and 1.5"),
        (lambda: AttentionMasking(hint_share=1.0), ValueError, r"hint_share must lie in \[0, 1\)"),
        (lambda: OracleMasking(draws=0), ValueError, "draws must be at least 1"),
        (lambda: BlockMasking(0), ValueError, r"must lie in \(0, 1\), got 0"),
        (lambda: RandomRatioMasking(dict(type="x")), TypeError, "expected masking= a MaskingStrat"),
        (
            lambda: RandomRatioMasking(AdversarialMasking(threshold=dict(type="tracking"))),
            ValueError,
            "expected a strategy with an exact count",
        ),
        (
            lambda: RandomRatioMasking(RandomMasking(), (0.9, 0.5)),
            ValueError,
            r"0 <= low <= high <= 1.*got \(0.9, 0.5\)",
        ),
        (
            # At the first batch, though 0.95 itself is next to never drawn.
            lambda: RandomRatioMasking(RandomMasking(patch_size=SIDE), (0.1, 0.95))(
                images_of((4, 4), 2), generator(0)
            ),
            ValueError,
            "mask_ratio=0.95 of 16 patches leaves none visible",
        ),
        (
            lambda: RandomRatioMasking(MaskingStrategy(SIDE)),
            ValueError,
            r"MaskingStrategy takes no mask_ratio.*say takes_ratio = True",
        ),
        (lambda: RandomRatioMasking(RandomMasking(), 0.5), ValueError, "expected two numbers"),
        (
            lambda: RandomRatioMasking(RandomMasking(), (0.0, 0.5)),
            ValueError,
            r"expected two numbers in \(0, 1\), got \(0.0, 0.5\)",
        ),
        (
            lambda: RandomRatioMasking(RandomMasking(), (0.5, 1)),
            ValueError,
            r"two numbers in \(0, 1\), got",
        ),
    ],
)
def test_wrong_use_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_copies_are_of_their_own():
    for kind in RANKED:
        strategy = RANKED[kind](0.5, SIDE)
        other, images = copy.deepcopy(strategy), images_of((4, 4), 2)
        one, two = (s(images, generator(0)).mask for s in (strategy, other))
        assert torch.equal(one, two), kind


STRATEGIES = {
    "random": lambda **options: RandomMasking(**options),
    "adversarial": lambda **options: AdversarialMasking(**options),
    "noiseless": lambda **options: AdversarialMasking(
        estimator=dict(type="straight_through", noise=0.0), **options
    ),
}
each_strategy = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES.keys())


@each_strategy
@given(case=draws.lengths_and_ratios(), batch=draws.batches, seed=draws.seeds)
def test_the_count_is_the_reference_s(make, case, batch, seed):
    grid, ratio = case
    length = math.prod(grid)
    masking = make(mask_ratio=ratio, patch_size=patch_of(grid)).train(enough(length, ratio))
    patch_mask = masking(images_of(grid, batch, seed=seed))
    assert patch_mask.grid == grid
    assert patch_mask.mask.shape == (batch, length)
    assert (patch_mask.mask.sum(1) == length - int(length * (1 - ratio))).all()
    assert patch_mask.num_visible == int(length * (1 - ratio))


@pytest.mark.parametrize("kind", ["adversarial", "noiseless"])
@given(case=draws.lengths_and_ratios(), seed=draws.seeds)
def test_the_surrogate_is_the_mask_bit_for_bit(kind, case, seed):
    grid, ratio = case
    masking = STRATEGIES[kind](mask_ratio=ratio, patch_size=patch_of(grid))
    masking.train(enough(math.prod(grid), ratio))
    patch_mask = masking(images_of(grid, seed=seed))
    assert torch.equal(patch_mask.learned.surrogate, patch_mask.mask)
    assert not patch_mask.mask.requires_grad
    assert not patch_mask.ids_shuffle.requires_grad


@pytest.mark.parametrize("strategy", [RandomMasking, AdversarialMasking])
def test_the_generator_decides(strategy):
    masking, pictures = strategy(mask_ratio=0.5, patch_size=4), images_of((8, 8))

    def draw(seed):
        return masking(pictures, generator=torch.Generator().manual_seed(seed)).mask

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


@each_strategy
def test_images_of_a_batch_do_not_influence_each_other(make):
    masking = make(mask_ratio=0.5, patch_size=4).eval()
    pictures = images_of((5, 5), batch=3)
    other = pictures.clone()
    other[1] = torch.randn_like(other[1])
    one, two = (
        masking(p, generator=torch.Generator().manual_seed(0)).mask for p in (pictures, other)
    )
    assert torch.equal(one[[0, 2]], two[[0, 2]])


@given(seed=draws.seeds, lambda_adv=st.floats(0, 4), score_weighted=st.booleans())
def test_total_loss_adds_the_terms_as_they_are_defined(seed, lambda_adv, score_weighted):
    """The value patch by patch, and the gradients that go to the two networks."""
    torch.manual_seed(seed)
    loss = dict(lambda_adv=lambda_adv, score_weighted=score_weighted)
    masking = AdversarialMasking(0.5, 4, loss=loss)
    patch_mask = masking(images_of((3, 4), batch=2, seed=seed))
    logits = patch_mask.learned.logits
    logits.retain_grad()
    error = torch.rand(2, 12, requires_grad=True)
    reconstruction = (error * torch.rand(2, 12)).sum()  # any loss of a codebase's own
    (own,) = torch.autograd.grad(reconstruction, error, retain_graph=True)
    total = masking.total_loss(reconstruction, error, patch_mask)
    total.backward(retain_graph=True)
    got = logits.grad.clone()

    mask, scores = patch_mask.mask.tolist(), patch_mask.learned.relative_scores.tolist()
    adversarial = 0.0
    for row in range(2):
        weight = [
            m * (s if score_weighted else 1) for m, s in zip(mask[row], scores[row], strict=True)
        ]
        for patch in range(12):
            share = weight[patch] / sum(weight) / 2
            adversarial += share * error[row, patch].item()
            expected = own[row, patch].item() + lambda_adv * share
            assert error.grad[row, patch].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    value = reconstruction.item() + lambda_adv * adversarial
    assert total.item() == pytest.approx(value, rel=1e-4, abs=1e-6)

    (plain,) = torch.autograd.grad(patch_mask.learned.objective(error), logits)
    torch.testing.assert_close(got, lambda_adv * plain)


def test_total_loss_of_a_strategy_that_learns_nothing_is_the_codebase_s():
    masking = RandomMasking(0.5, 4)
    reconstruction = torch.tensor(3.0, requires_grad=True)
    patch_mask = masking(images_of((3, 4)))
    assert masking.total_loss(reconstruction, torch.rand(2, 12), patch_mask) is reconstruction


def test_total_loss_refuses_an_error_that_is_not_one_number_per_patch():
    masking = AdversarialMasking(0.5, 4)
    patch_mask = masking(images_of((3, 4)))
    with pytest.raises(ValueError, match=r"\(B, L\) = \(2, 12\), got \(2, 12, 48\)"):
        masking.total_loss(torch.tensor(1.0), torch.rand(2, 12, 48), patch_mask)


@each_strategy
def test_wrong_images_are_refused(make):
    masking = make(mask_ratio=0.5, patch_size=4)
    with pytest.raises(ValueError, match="10 x 8 pixels does not split into patches of 4 x 4"):
        masking(torch.zeros(1, 3, 10, 8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(3, 8, 8\)"):
        masking(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="leaves none visible"):
        make(mask_ratio=0.9, patch_size=4)(torch.zeros(1, 3, 8, 8))
