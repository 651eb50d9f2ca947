"""Seen, predicted, left out: laws of ``prediction_ratio`` for every strategy."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, PatchMask, RandomMasking
from amn_masking.estimators import ESTIMATORS
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    MaskingStrategy,
    OracleMasking,
    RandomRatioMasking,
    ShuffledMasking,
)
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of, patch_of


class RightEnd(MaskingStrategy):
    """One's own, which knows nothing of ``prediction_ratio``."""

    takes_ratio = True

    def forward(self, images):
        grid = self.grid(images)
        length = math.prod(grid)
        hidden = torch.arange(length) >= int(length * (1 - self.mask_ratio))
        return PatchMask.from_mask(hidden.expand(len(images), -1), grid)


FREE = {  # the predicted are a uniform part of the masked
    "random": RandomMasking,
    "block": BlockMasking,
    "green": ColorNoiseMasking,
    "own": lambda masked, side, **more: RightEnd(side, masked, **more),
}
CHOOSING = {  # they choose the predicted, and the left-out are a uniform part of the others
    **{
        name: lambda masked, side, name=name, **more: AdversarialMasking(
            masked, side, estimator=dict(type=name), **more
        )
        for name in ESTIMATORS
    },
    "hard patches": HardPatchMasking,
    "attention": lambda *args, **more: AttentionMasking(*args, attention=brightness, **more),
    "oracle": lambda *args, **more: OracleMasking(*args, error=brightness, **more),
}
ALL = {**FREE, **CHOOSING}
LEARNED = [*ESTIMATORS, "hard patches"]


@st.composite
def two_ratios(draw):
    """A grid, a mask ratio and a prediction ratio that leave a patch visible and predict two."""
    grid, masked = draw(draws.lengths_and_ratios())
    predicted = draw(st.floats(0.001, 1.0)) * masked
    length = math.prod(grid)
    assume(length - draws.visible_reference(length, predicted) >= 2)
    return grid, masked, predicted


@pytest.mark.parametrize("name", ALL)
@given(case=two_ratios(), batch=draws.batches, seed=draws.seeds)
def test_the_patches_part_in_three_by_mae_s_counts(name, case, batch, seed):
    grid, masked, predicted = case
    length = math.prod(grid)
    assume(name != "block" or len(grid) == 2)
    strategy = ALL[name](masked, patch_of(grid), prediction_ratio=predicted)
    patch_mask = strategy(images_of(grid, batch, seed))
    seen = draws.visible_reference(length, masked)
    count = length - draws.visible_reference(length, predicted)
    assert patch_mask.num_visible == seen
    assert patch_mask.num_predicted == count
    assert patch_mask.num_left_out == length - seen - count
    assert ((patch_mask.mask == 0).sum(1) == seen).all()
    assert (patch_mask.predicted.sum(1) == count).all()
    assert (patch_mask.predicted <= patch_mask.mask).all()
    # In ids_shuffle the seen come first, then the predicted, then the left-out.
    rank = patch_mask.mask + (patch_mask.mask - patch_mask.predicted)
    assert torch.equal(rank.gather(1, patch_mask.ids_shuffle), rank.sort(1).values)
    assert torch.equal(
        patch_mask.ids_restore.gather(1, patch_mask.ids_shuffle),
        torch.arange(length).expand(batch, -1),
    )
    counted = patch_mask.counted
    assert (counted is None) == (patch_mask.num_left_out == 0)
    assert counted is None or torch.equal(counted, rank < 2)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_share_that_is_masked_predicted_changes_nothing_and_draws_nothing(name, training):
    plain, whole = ALL[name](0.5, SIDE), ALL[name](0.5, SIDE, prediction_ratio=0.5)
    whole.load_state_dict(plain.state_dict())
    images = images_of((8, 8), 4)
    masks, states = [], []
    for strategy in (plain.train(training), whole.train(training)):
        torch.manual_seed(7)
        masks.append(strategy(images))
        states.append(torch.get_rng_state())
    one, other = masks
    assert torch.equal(one.ids_shuffle, other.ids_shuffle)
    assert torch.equal(*states)
    assert torch.equal(one.predicted, other.predicted)
    if one.learned is not None:
        error = torch.rand(4, 64, generator=generator(1))
        gradients = []
        for strategy, patch_mask in zip((plain, whole), masks, strict=True):
            strategy.total_loss(torch.zeros(()), error, patch_mask).backward()
            gradients.append([p.grad for p in strategy.network.parameters()])
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("name", CHOOSING)
def test_what_is_left_out_is_a_uniform_part_of_what_was_not_chosen(name):
    images = images_of((2, 3), 1, seed=3).expand(6000, -1, -1, -1)
    torch.manual_seed(0)
    patch_mask = CHOOSING[name](0.67, SIDE, prediction_ratio=0.34)(images)
    left_out = (patch_mask.mask - patch_mask.predicted).bool()
    assert (left_out.sum(1) == 2).all()
    # Given the predicted, each other patch is left out with the same chance: 2 of 3.
    expected, counts = (1 - patch_mask.predicted).sum(0) * 2 / 3, left_out.sum(0)
    asked = expected > 20
    assert chi_square(counts[asked], expected[asked]) < 25  # 5 degrees of freedom: p about 1e-4


@pytest.mark.parametrize("name", FREE)
def test_what_is_predicted_is_a_uniform_part_of_what_is_masked(name):
    images = images_of((2, 3), 1, seed=3).expand(6000, -1, -1, -1)
    torch.manual_seed(0)
    patch_mask = FREE[name](0.67, SIDE, prediction_ratio=0.34)(images)
    expected, counts = patch_mask.mask.sum(0) * 3 / 5, patch_mask.predicted.sum(0)
    asked = expected > 20
    assert chi_square(counts[asked], expected[asked]) < 25


def test_the_order_of_a_strategy_that_chooses_is_that_of_what_is_predicted():
    images = images_of((8, 8), 4)
    order = brightness(images).argsort(1, descending=True)
    strategy = OracleMasking(0.75, SIDE, brightness, prediction_ratio=0.25)
    predicted = strategy(images).predicted
    assert (predicted.gather(1, order[:, :16]) == 1).all()


@pytest.mark.parametrize("name", LEARNED)
def test_the_surrogate_is_the_predicted_set_and_its_reward_trains_the_network(name):
    strategy = ALL[name](0.75, SIDE, prediction_ratio=0.25)
    if name == "hard patches":
        strategy.set_progress(1.0)
    patch_mask = strategy(images_of((8, 8), 4))
    assert torch.equal(patch_mask.learned.surrogate, patch_mask.predicted)
    assert torch.equal(patch_mask.learned.chosen.mask, patch_mask.predicted)
    error = torch.rand(4, 64, generator=generator(1))
    elsewhere = error.where(patch_mask.predicted > 0, float("nan"))
    total = strategy.total_loss(torch.zeros(()), elsewhere, patch_mask)
    total.backward()
    assert torch.isfinite(total)
    gradient = sum(float(p.grad.abs().sum()) for p in strategy.network.parameters())
    assert math.isfinite(gradient)
    assert gradient > 0


@pytest.mark.parametrize("name", ALL)
def test_images_of_a_batch_do_not_influence_each_other(name):
    if name == "own":
        pytest.skip("it takes no generator")
    strategy = ALL[name](0.75, SIDE, prediction_ratio=0.25)
    images = images_of((8, 8), 3)
    changed = torch.cat([images[:1], images_of((8, 8), 2, seed=9)])
    one, two = (strategy(x, generator(5)) for x in (images, changed))
    assert torch.equal(one.mask[0], two.mask[0])
    assert torch.equal(one.predicted[0], two.predicted[0])


@pytest.mark.parametrize("name", [n for n in ALL if n != "own"])
def test_the_generator_is_the_only_source_of_what_is_left_out(name):
    strategy, images = ALL[name](0.75, SIDE, prediction_ratio=0.25), images_of((8, 8), 4)
    masks = [strategy(images, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(masks[0].mask, masks[1].mask)
    assert torch.equal(masks[0].predicted, masks[1].predicted)
    left = [m.mask - m.predicted for m in masks]
    assert not torch.equal(left[0], left[2])
    state = torch.get_rng_state()
    strategy(images, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["oracle", "own"])
def test_in_eval_what_follows_from_the_mask_is_as_if_drawn(name):
    """Each patch is left out with the same chance, and beside each other as often as not."""
    patch_mask = ALL[name](0.75, SIDE, prediction_ratio=0.25).eval()(images_of((6, 6), 3000))
    left_out = (patch_mask.mask - patch_mask.predicted).bool()
    among = (1 - patch_mask.predicted) if name == "oracle" else patch_mask.mask
    if name == "own":  # its masks are all alike, and so is what is left out of them
        assert (left_out == left_out[:1]).all()
        return
    counts, expected = left_out.sum(0), among.sum(0) * 18 / 27
    assert chi_square(counts, expected) < 75  # 35 degrees of freedom: p about 1e-4
    seen = (patch_mask.mask == 0).float().reshape(-1, 6, 6)
    beside = (seen[:, :, 1:] * seen[:, :, :-1]).mean() / seen.mean()
    assert 0.2 < beside < 0.3  # 9 of 36 are seen, and of a seen one's 35 others 8


@pytest.mark.parametrize("name", CHOOSING)
def test_in_eval_nothing_is_drawn(name):
    strategy = CHOOSING[name](0.75, SIDE, prediction_ratio=0.25).eval()
    images, state = images_of((8, 8), 4), torch.get_rng_state()
    one, two = strategy(images), strategy(images)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.predicted, two.predicted)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [n for n in ALL if n != "own"])
def test_patches_without_data_are_neither_predicted_nor_left_out(name):
    strategy = ALL[name](0.5, SIDE, prediction_ratio=0.25)
    images, valid = images_of((8, 8), 16), torch.ones(16, 64, dtype=torch.bool)
    valid[:, ::3] = False
    patch_mask = strategy(images, valid=valid)
    assert (patch_mask.mask[:, ::3] == 0).all()
    assert torch.equal(patch_mask.counted, valid & (patch_mask.mask == patch_mask.predicted))
    few = valid.clone()
    few[1, 33:] = False
    with pytest.raises(ValueError, match="more valid patches"):
        strategy(images, valid=few)


def test_a_permutation_of_the_patches_goes_through():
    # Of priorities, by the choice itself: what is left out is drawn after it.
    images = images_of((4, 4), 2)
    strategy = OracleMasking(0.75, SIDE, brightness, prediction_ratio=0.25)
    patches = images.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE).flatten(2, 3)
    order = torch.randperm(16, generator=generator(3))
    moved = (
        patches[:, :, order].unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 16, 16)
    )
    one, two = strategy(images), strategy(moved)
    assert torch.equal(one.predicted[:, order], two.predicted)


@pytest.mark.parametrize("kind", ["shuffled", "random ratio"])
def test_wrappers_keep_the_three_sets(kind):
    inner = AdversarialMasking(patch_size=SIDE, prediction_ratio=0.25)
    if kind == "shuffled":
        strategy, most = ShuffledMasking(inner), 48
    else:
        strategy, most = RandomRatioMasking(inner, (0.5, 0.9)), 58
    assert strategy.prediction_ratio == 0.25
    patch_mask = strategy(images_of((8, 8), 4))
    assert (patch_mask.predicted.sum(1) == 16).all()
    assert (patch_mask.mask.sum(1) <= most).all()
    assert (patch_mask.mask.sum(1) >= 32).all()
    assert torch.equal(patch_mask.learned.surrogate, patch_mask.predicted)
    moved = patch_mask.take(torch.tensor([2, 0]))
    assert torch.equal(moved.predicted, patch_mask.predicted[[2, 0]])


def test_both_ratios_follow_their_schedules_and_may_be_set():
    strategy = RandomMasking(
        dict(type="linear", start=0.5, end=0.75),
        SIDE,
        prediction_ratio=dict(type="linear", start=0.5, end=0.25),
    )
    images, counts = images_of((8, 8), 2), []
    for progress in (0.0, 0.5, 1.0):
        strategy.set_progress(progress)
        counts.append(
            [int(x[0].sum()) for x in (strategy(images).mask, strategy(images).predicted)]
        )
    assert counts == [[32, 32], [40, 24], [48, 16]]
    strategy.prediction_ratio = 0.125
    assert strategy(images).predicted[0].sum() == 8
    assert "prediction_ratio=0.125" in repr(strategy)
    strategy.prediction_ratio = None
    strategy.set_progress(0.5)
    assert strategy(images).num_predicted is None
    strategy.prediction_ratio = 0.125
    assert copy.deepcopy(strategy)(images).predicted[0].sum() == 8


def test_more_predicted_than_masked_is_refused_at_once_or_when_the_mask_is_made():
    with pytest.raises(ValueError, match=r"prediction_ratio=0\.8 is a part"):
        RandomMasking(0.5, SIDE, prediction_ratio=0.8)
    with pytest.raises(ValueError, match=r"prediction_ratio=0\.8 is a part"):
        AdversarialMasking(dict(type="linear", start=0.9, end=0.5), SIDE, prediction_ratio=0.8)
    strategy = AdversarialMasking(0.75, SIDE, prediction_ratio=0.5)
    strategy.mask_ratio = 0.25
    with pytest.raises(ValueError, match="lower prediction_ratio, or raise mask_ratio"):
        strategy(images_of((8, 8)))
    with pytest.raises(ValueError, match="is a part of what is masked"):
        RandomRatioMasking(AdversarialMasking(patch_size=SIDE, prediction_ratio=0.6))(
            images_of((8, 8))
        )
    # Ends that fit, and a middle that does not: at once, or where they count in different units.
    late = dict(type="linear", start=0.5, end=0.75, begin=0.9)
    early = dict(type="linear", start=0.5, end=0.75, until=0.5)
    with pytest.raises(ValueError, match=r"prediction_ratio=0\.75 is a part .* mask_ratio=0\.5;"):
        RandomMasking(late, SIDE, prediction_ratio=early)
    by_iteration = dict(by="iter", begin=10)
    with pytest.raises(ValueError, match=r"prediction_ratio=0\.75 is a part .* mask_ratio=0\.5;"):
        RandomMasking(
            dict(late, **by_iteration, until=40),
            SIDE,
            prediction_ratio=dict(early, **by_iteration, until=10),
        )
    by_epoch = dict(by="epoch", begin=0)
    with pytest.raises(ValueError, match="is a part of what is masked"):
        RandomMasking(
            dict(start=0.5, end=0.75, until=8, **by_epoch),
            SIDE,
            prediction_ratio=dict(start=0.25, end=0.75, until=4, **by_epoch),
        )
    # Beside the default ratio, which a codebase may move, when the mask is made.
    with pytest.raises(ValueError, match=r"prediction_ratio=0\.8 .* mask_ratio=0\.75;"):
        RandomMasking(patch_size=SIDE, prediction_ratio=0.8)(images_of((8, 8)))
    crossing = RandomMasking(late, SIDE, prediction_ratio=dict(early, by="iter", until=10))
    crossing.set_progress(0.6, iteration=60)
    with pytest.raises(ValueError, match="lower prediction_ratio, or raise mask_ratio"):
        crossing(images_of((8, 8)))


def test_where_nothing_would_follow_it_it_is_refused():
    for threshold in ("mean", "constant", "difficulty", "tracking"):
        with pytest.raises(ValueError, match="type='quantile'"):
            AdversarialMasking(
                patch_size=SIDE, threshold=dict(type=threshold), prediction_ratio=0.25
            )

    class TakesNone(RightEnd):
        takes_ratio = False

    with pytest.raises(ValueError, match="which this TakesNone does not take"):
        TakesNone(SIDE, prediction_ratio=0.25)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        RandomMasking(0.5, SIDE, prediction_ratio=0.0)


class Uneven(RightEnd):
    def forward(self, images):
        mask = torch.ones(len(images), 64).tril(40)
        mask[0] = mask[0].roll(1) * 0 + (torch.arange(64) < 20)
        return PatchMask.from_mask(mask[:, :64], (8, 8))


def test_counts_that_differ_are_refused():
    with pytest.raises(ValueError, match="the same number of patches each"):
        Uneven(SIDE, prediction_ratio=0.25)(images_of((8, 8), 2))


def test_one_predicted_patch_teaches_nothing_and_is_refused():
    with pytest.raises(ValueError, match="compares the patches of one image"):
        AdversarialMasking(0.75, SIDE, prediction_ratio=0.06)(images_of((4, 4)))


@pytest.mark.parametrize("reconstruct", ["masked", "all"])
@pytest.mark.parametrize("pixels", [False, True], ids=["patches", "pixels"])
def test_what_is_left_out_is_in_no_term_of_the_loss(reconstruct, pixels):
    patch_mask = AdversarialMasking(0.75, SIDE, prediction_ratio=0.25)(images_of((8, 8), 3))
    loss = CombinedAdversarialLoss(lambda_adv=0.5, reconstruct=reconstruct)
    pred, target = (torch.randn(3, 64, 48, generator=generator(seed)) for seed in (1, 2))
    left_out = (patch_mask.mask - patch_mask.predicted).bool()
    if pixels:
        from amn_masking.patches import spread_to_pixels, unpatchify

        pred, target = (unpatchify(x, (SIDE, SIDE), (8, 8)) for x in (pred, target))
        where = spread_to_pixels(left_out, (8, 8), 32, 32)
        error = (pred - target).square()
    else:
        where, error = left_out[:, :, None], (pred - target).square()
    changed = torch.where(where, torch.full_like(pred, 7.0), pred)
    one, two = (loss.terms(x, target, patch_mask) for x in (pred, changed))
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    # And what is counted is counted: the plain mean over it.
    kept = patch_mask.predicted if reconstruct == "masked" else patch_mask.counted.float()
    kept = spread_to_pixels(kept, (8, 8), 32, 32) if pixels else kept[:, :, None]
    channels = 3 if pixels and reconstruct == "masked" else 1  # SimMIM's sum over the channels
    expected = channels * (error * kept).sum() / kept.expand_as(error).sum()
    torch.testing.assert_close(one.reconstruction, expected)


def test_a_learned_mask_is_not_parted_by_chance():
    """Its network would be rewarded for patches that nobody predicts."""

    class Outer(MaskingStrategy):
        takes_ratio = True

        def __init__(self, **ratios):
            super().__init__(SIDE, 0.75, **ratios)
            self.inner = AdversarialMasking(0.75, SIDE)

        def forward(self, images):
            return self.inner(images)

    assert Outer()(images_of((8, 8))).learned is not None
    agreeing = Outer(prediction_ratio=0.25)
    agreeing.inner.prediction_ratio = 0.25
    assert agreeing(images_of((8, 8))).num_predicted == 16
    agreeing.inner.prediction_ratio = 0.5
    with pytest.raises(ValueError, match=r"predicts 16 patches .* its mask predicts 32"):
        agreeing(images_of((8, 8)))
    parting = Outer(prediction_ratio=0.25)
    parting.inner.mask_ratio = 0.25
    parting.forward = lambda images: parting.leave_out(parting.inner(images), None)
    parted = parting(images_of((8, 8)))
    assert torch.equal(parted.learned.surrogate, parted.predicted)
    with pytest.raises(ValueError, match="set prediction_ratio on the strategy that learns"):
        Outer(prediction_ratio=0.25)(images_of((8, 8)))
