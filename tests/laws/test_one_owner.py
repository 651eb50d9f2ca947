"""Every number has one owner, and what is set is followed, or refused, at any time."""

from __future__ import annotations

import pytest
import torch

from amn_masking import AdversarialMasking, MaskingStrategy, PatchMask, RandomMasking
from amn_masking.counts import count_masked
from amn_masking.schedules import Schedule
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    OracleMasking,
    RandomRatioMasking,
    ShuffledMasking,
)
from amn_masking.thresholds import Quantile, Threshold
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of

GRID, LENGTH = (8, 8), 64
EXACT = {
    "random": RandomMasking,
    "block": BlockMasking,
    "color noise": ColorNoiseMasking,
    "attention": lambda ratio, side: AttentionMasking(ratio, side, attention=brightness),
    "oracle": lambda ratio, side: OracleMasking(ratio, side, brightness),
    "hard patches": HardPatchMasking,
    "adversarial": AdversarialMasking,
    "an object": lambda ratio, side: AdversarialMasking(ratio, side, threshold=Quantile()),
    "shuffled": lambda ratio, side: ShuffledMasking(RandomMasking(ratio, side)),
    "shuffled, learned": lambda ratio, side: ShuffledMasking(AdversarialMasking(ratio, side)),
}
FREE = {
    "tracking": lambda ratio, side: AdversarialMasking(
        ratio, side, threshold=dict(type="tracking", rate=0.5), random_share=0.0
    ),
    "difficulty": lambda ratio, side: AdversarialMasking(
        ratio, side, threshold=dict(type="difficulty"), random_share=0.3
    ),
}
each_exact = pytest.mark.parametrize("name", EXACT)
SCHEDULE = dict(type="linear", start=0.25, end=0.75)


def masked(strategy, images=None):
    counts = strategy(images_of(GRID) if images is None else images).mask.sum(1)
    assert len(counts.unique()) == 1
    return int(counts[0])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@each_exact
def test_a_ratio_that_is_set_is_followed_at_once(name, training):
    strategy = EXACT[name](0.5, SIDE).train(training)
    for ratio in (0.5, 0.25, 0.8, 0.31):
        strategy.mask_ratio = ratio
        assert strategy.mask_ratio == ratio
        assert masked(strategy) == count_masked(LENGTH, ratio)


@pytest.mark.parametrize("as_object", [True, False])
@each_exact
def test_a_ratio_may_be_a_schedule_from_the_start_or_later(name, as_object):
    schedule = Schedule(0.25, 0.75) if as_object else SCHEDULE
    later = EXACT[name](0.9, SIDE)
    later.mask_ratio = schedule
    for strategy in (EXACT[name](schedule, SIDE), later):
        for progress, ratio in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.75)):
            strategy.set_progress(progress)
            assert strategy.mask_ratio == pytest.approx(ratio)
            assert masked(strategy) == count_masked(LENGTH, strategy.mask_ratio)


@each_exact
def test_a_schedule_set_in_mid_run_is_read_at_that_place(name):
    strategy = EXACT[name](0.5, SIDE)
    strategy.set_progress(0.5, iteration=50, epoch=5)
    strategy.mask_ratio = SCHEDULE
    assert strategy.mask_ratio == pytest.approx(0.5)
    strategy.mask_ratio = dict(start=0.2, end=0.6, until=100, by="iter")
    assert strategy.mask_ratio == pytest.approx(0.4)
    strategy.mask_ratio = dict(start=0.2, end=0.6, until=20, by="epoch")
    assert strategy.mask_ratio == pytest.approx(0.3)
    strategy.mask_ratio = 0.7
    strategy.set_progress(1.0)
    assert strategy.mask_ratio == 0.7


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, float("nan"), dict(start=0.5, end=1.0)])
@each_exact
def test_what_is_no_ratio_is_refused_and_changes_nothing(name, value):
    strategy = EXACT[name](0.5, SIDE)
    with pytest.raises(ValueError, match=r"mask_ratio must lie in \(0, 1\), got"):
        strategy.mask_ratio = value
    with pytest.raises(TypeError, match="mask_ratio must be a number or dict"):
        strategy.mask_ratio = "0.5"
    with pytest.raises(TypeError, match="mask_ratio must be a number or dict"):
        strategy.mask_ratio = True
    assert masked(strategy) == 32


def steps(strategy, count):
    """Mean ratio of the last ten of some training steps under errors that say nothing."""
    images, ratios = images_of(GRID, 64), []
    for _ in range(count):
        patch_mask = strategy(images)
        error = torch.rand(64, LENGTH)
        strategy.total_loss(error.mean(), error, patch_mask)
        ratios.append(patch_mask.mask.mean().item())
    return sum(ratios[-10:]) / 10


def test_tracking_follows_a_ratio_that_is_set_in_mid_run():
    strategy = FREE["tracking"](0.3, SIDE)
    for ratio in (0.3, 0.7, 0.5):
        strategy.mask_ratio = ratio
        assert steps(strategy, 60) == pytest.approx(ratio, abs=0.03)


def test_difficulty_goes_on_from_a_ratio_that_is_set_in_mid_run():
    """By itself, under errors that say nothing, it has moved by less than 0.06 in 20 steps."""
    strategy = FREE["difficulty"](0.3, SIDE)
    for ratio in (0.3, 0.7, 0.5):
        strategy.mask_ratio = ratio
        strategy(images_of(GRID, 64))
        assert strategy.threshold.ratio.item() == pytest.approx(ratio)
        assert steps(strategy, 20) == pytest.approx(ratio, abs=0.1)
        assert strategy.threshold.ratio.item() == pytest.approx(ratio, abs=0.06)


def test_tracking_follows_a_schedule():
    strategy, images = FREE["tracking"](SCHEDULE, SIDE), images_of(GRID, 64)
    ratios = []
    for step in range(300):
        strategy.set_progress(step / 300)
        ratios.append(strategy(images).mask.mean().item())
    assert ratios[150] == pytest.approx(0.5, abs=0.05)
    assert sum(ratios[-20:]) / 20 == pytest.approx(0.74, abs=0.05)


def test_difficulty_moves_the_ratio_itself_and_refuses_a_schedule_of_it():
    message = "difficulty' moves the ratio itself and expected a mask_ratio to begin with"
    with pytest.raises(ValueError, match=message):
        FREE["difficulty"](SCHEDULE, SIDE)
    strategy = FREE["difficulty"](0.5, SIDE)
    strategy.mask_ratio = SCHEDULE
    with pytest.raises(ValueError, match=message):
        strategy(images_of(GRID))


def test_a_threshold_without_a_ratio_refuses_one_at_any_time():
    message = "Mean chooses the number of masked patches by itself and takes no mask_ratio"
    for ratio in (0.25, 0.75, SCHEDULE):
        with pytest.raises(ValueError, match=message):
            AdversarialMasking(ratio, SIDE, threshold=dict(type="mean"))
    strategy = AdversarialMasking(patch_size=SIDE, threshold=dict(type="mean"))
    assert strategy.mask_ratio is None
    for wrapper in (strategy, ShuffledMasking(strategy)):
        with pytest.raises(ValueError, match=message):
            wrapper.mask_ratio = 0.5


def test_a_ratio_that_is_drawn_refuses_one_that_is_set():
    strategy = RandomRatioMasking(RandomMasking(patch_size=SIDE))
    with pytest.raises(ValueError, match="draws the ratio and takes no mask_ratio; set its ratio_"):
        strategy.mask_ratio = 0.5
    strategy.ratio_range = (0.25, 0.25)
    assert masked(strategy) == 16


GIVEN = {"a number": 0.3, "a schedule": dict(start=0.3, end=0.6)}


@pytest.mark.parametrize("ratio", GIVEN.values(), ids=GIVEN)
def test_a_ratio_that_is_drawn_refuses_one_of_the_strategy_within(ratio):
    message = r"draws the ratio, but its strategy was given mask_ratio=0.3; leave that out"
    for inner in (RandomMasking(ratio, SIDE), ShuffledMasking(AdversarialMasking(ratio, SIDE))):
        with pytest.raises(ValueError, match=message):
            RandomRatioMasking(inner, (0.5, 0.9))
    inner = AdversarialMasking(patch_size=SIDE)
    strategy = RandomRatioMasking(inner, (0.5, 0.9))
    strategy(images_of(GRID))
    inner.mask_ratio = ratio
    with pytest.raises(ValueError, match=message):
        strategy(images_of(GRID))


class Halves(Threshold):
    """Says of no ratio that it takes one; so does the strategy below."""

    def forward(self, candidates):
        assert candidates.mask_ratio is None
        return candidates.select(candidates.length // 2)


class LeftHalf(MaskingStrategy):
    def forward(self, images, generator=None):
        h, w = self.grid(images)
        return PatchMask.from_mask((torch.arange(w) < w // 2).expand(len(images), h, w))


def test_one_s_own_part_takes_no_ratio_unless_it_says_so():
    makes = (
        lambda **ratio: AdversarialMasking(patch_size=SIDE, threshold=Halves(), **ratio),
        lambda **ratio: LeftHalf(SIDE, **ratio),
    )
    for make in makes:
        strategy = make()
        assert masked(strategy) == 32
        assert strategy.mask_ratio is None
        assert "mask_ratio=0" not in repr(strategy)
        for refused in (
            lambda make=make: make(mask_ratio=0.9),
            lambda strategy=strategy: setattr(strategy, "mask_ratio", 0.9),
            lambda strategy=strategy: RandomRatioMasking(strategy, (0.25, 0.75)),
        ):
            with pytest.raises(ValueError, match=r"takes no mask_ratio|exact count"):
                refused()


@each_exact
def test_a_host_s_ratio_is_the_default_of_a_strategy_that_was_given_none(name):
    strategy = EXACT[name](None, SIDE)
    assert not strategy.own_ratio
    assert strategy.mask_ratio == 0.75
    for ratio in (0.5, 0.25):
        strategy.default_ratio = ratio
        assert strategy.mask_ratio == ratio
        assert masked(strategy) == count_masked(LENGTH, ratio)
    assert not strategy.own_ratio
    strategy.mask_ratio = 0.4
    strategy.default_ratio = 0.5
    assert strategy.own_ratio
    assert masked(strategy) == count_masked(LENGTH, 0.4)
    assert EXACT[name](0.75, SIDE).own_ratio


def test_without_a_ratio_mae_s_is_taken():
    for threshold in ("quantile", "tracking"):
        assert AdversarialMasking(threshold=dict(type=threshold)).mask_ratio == 0.75


WRAPPED = {
    "alone": lambda strategy: strategy,
    "shuffled": ShuffledMasking,
    "random ratio": lambda strategy: RandomRatioMasking(strategy, (0.5, 0.5)),
}
each_wrapping = pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())


def half(**options):
    """Masks one half, without a ratio of its own."""
    strategy = AdversarialMasking(patch_size=SIDE, **options)
    strategy.default_ratio = 0.5
    return strategy


def gradient(strategy, inner):
    patch_mask = strategy(images_of(GRID, 4), generator(0))
    inner.zero_grad()
    error = brightness(images_of(GRID, 4)).exp().requires_grad_()
    strategy.total_loss(error.mean(), error, patch_mask).backward()
    return torch.cat([p.grad.flatten() for p in inner.parameters()])


@each_wrapping
def test_a_strength_that_is_set_is_followed(wrap):
    inner = half(network=dict(channels=4))
    strategy = wrap(inner)
    full = gradient(strategy, inner)
    assert full.abs().max() > 0
    for strength in (-1.0, 0.0, 0.5):
        strategy.strength = strength
        assert inner.strength == strategy.strength == strength
        assert strategy.log_values()["strength"] == strength
        torch.testing.assert_close(gradient(strategy, inner), strength * full)
    strategy.strength = dict(start=-1.0, end=1.0)
    strategy.set_progress(0.75)
    torch.testing.assert_close(gradient(strategy, inner), 0.5 * full)


@each_wrapping
def test_a_random_share_that_is_set_is_followed(wrap):
    strategy = wrap(half())
    assert strategy(images_of(GRID)).learned.drawn_at_random is None
    strategy.random_share = 0.25
    assert (strategy(images_of(GRID)).learned.drawn_at_random.sum(1) == 8).all()
    strategy.random_share = dict(start=1.0, end=0.5)
    strategy.set_progress(0.5)
    assert (strategy(images_of(GRID)).learned.drawn_at_random.sum(1) == 24).all()


@each_wrapping
def test_a_temperature_that_is_set_is_followed(wrap):
    strategy = wrap(half()).eval()
    logits = strategy(images_of(GRID)).learned.logits
    strategy.temperature = 2.0
    torch.testing.assert_close(strategy(images_of(GRID)).learned.logits, logits / 2)
    strategy.temperature = dict(start=1.0, end=4.0)
    strategy.set_progress(1.0)
    torch.testing.assert_close(strategy(images_of(GRID)).learned.logits, logits / 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("strength", 1.5, r"strength must lie in \[-1, 1\], got 1.5"),
        ("random_share", -0.1, r"random_share must lie in \[0, 1\]"),
        ("temperature", 0.0, r"temperature must lie in \(0, inf\)"),
    ],
)
@each_wrapping
def test_what_is_out_of_range_is_refused_at_any_time(wrap, name, value, message):
    strategy = wrap(half())
    before = getattr(strategy, name)
    with pytest.raises(ValueError, match=message):
        setattr(strategy, name, value)
    assert getattr(strategy, name) == before


@pytest.mark.parametrize("name", ["strength", "random_share", "temperature"])
@pytest.mark.parametrize("wrap", [ShuffledMasking, RandomRatioMasking])
def test_a_number_that_the_wrapped_strategy_has_not_is_refused(wrap, name):
    with pytest.raises(AttributeError, match=f"RandomMasking has no {name} to set"):
        setattr(wrap(RandomMasking(patch_size=SIDE)), name, 0.5)


def test_settings_that_exclude_each_other_are_refused_when_set_later_too():
    strategy = AdversarialMasking(
        patch_size=SIDE, threshold=dict(type="mean"), estimator=dict(type="score_function")
    )
    strategy(images_of(GRID))
    strategy.random_share = 0.5
    with pytest.raises(ValueError, match=r"score_function.*expected random_share=0"):
        strategy(images_of(GRID))
    strategy = FREE["difficulty"](0.5, SIDE)
    strategy.random_share = 0.0
    with pytest.raises(ValueError, match="expected random_share > 0 all the time"):
        strategy(images_of(GRID))
