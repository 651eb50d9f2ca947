"""Schedules: their values, by every unit, and what they refuse."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, RandomMasking
from amn_masking.schedules import Schedule, as_schedule
from tests.helpers.autoencoder import Autoencoder

UNITS = ["progress", "iter", "epoch"]
values = st.floats(-1, 1)


def reference(start, end, begin, until, now):
    """In exact fractions, and told as a story."""
    start, end, begin, until, now = map(Fraction, (start, end, begin, until, now))
    if now >= until:
        return end
    if now < begin:
        return start
    return start + (end - start) * (now - begin) / (until - begin)


@given(
    by=st.sampled_from(UNITS),
    start=values,
    end=values,
    stretch=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    now=st.floats(0, 1),
    scale=st.sampled_from([1, 7, 90000]),
)
def test_values_are_the_reference_s_by_every_unit(by, start, end, stretch, now, scale):
    scale = 1 if by == "progress" else scale
    begin, until, now = (x * scale for x in (*stretch, now))
    schedule = Schedule(start, end, begin, until, by)
    told = {"progress": 0.123, "iteration": 4.56, "epoch": 7.89}
    told[{"progress": "progress", "iter": "iteration", "epoch": "epoch"}[by]] = now
    expected = reference(start, end, begin, until, now)
    assert schedule(**told) == pytest.approx(float(expected), abs=1e-9)
    assert min(start, end) - 1e-9 <= schedule(**told) <= max(start, end) + 1e-9


@pytest.mark.parametrize("by", UNITS)
def test_the_ends_are_exact_and_the_values_between_are_not_constant(by):
    schedule = Schedule(-0.1, 0.7, 0.25, 0.75, by)
    ends = [schedule(*(3 * [now])) for now in (0.0, 0.25, 0.75, 1.0)]
    assert ends == [-0.1, -0.1, 0.7, 0.7]
    assert schedule(0.5, 0.5, 0.5) == pytest.approx(0.3)


@pytest.mark.parametrize("by", UNITS)
def test_a_step_schedule_jumps_where_begin_is_until(by):
    step = Schedule(0.0, 1.0, begin=0.5, until=0.5, by=by)
    assert [step(now, now, now) for now in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 1, 1]
    assert Schedule(2.0, 3.0, begin=0.0, until=0.0, by=by)(0.0, 0, 0) == 3.0


def test_a_number_is_constant_and_a_schedule_may_outlast_the_training():
    assert as_schedule(0.3, "strength")(0.9) == 0.3
    long = as_schedule(dict(start=0, end=1, until=300, by="epoch"), "strength")
    assert long(1.0, 30, 3.0) == pytest.approx(0.01)


def test_strategies_move_by_progress_iteration_and_epoch_at_once():
    masking = AdversarialMasking(
        strength=dict(type="linear", start=-1, end=1, begin=0.2, until=0.6),
        random_share=dict(start=1.0, end=0.0, begin=10, until=20, by="iter"),
    )
    assert (masking.strength, masking.random_share) == (-1, 1)
    seen = []
    for step in (0, 10, 20, 30, 50):
        masking.set_progress(step / 50, iteration=step)
        seen.append((masking.strength, masking.random_share))
    assert seen == [(-1, 1), (-1, 1), (pytest.approx(0), 0), (1, 0), (1, 0)]
    by_epoch = AdversarialMasking(strength=dict(start=0, end=1, begin=1, until=3, by="epoch"))
    assert by_epoch.strength == 0
    by_epoch.set_progress(0.2, epoch=2.5)
    assert by_epoch.strength == 0.75


def test_schedules_by_progress_need_the_progress_only():
    masking = AdversarialMasking(strength=dict(type="linear", start=-1, end=1))
    masking.set_progress(0.75)
    assert masking.strength == 0.5


@pytest.mark.parametrize("by", ["iter", "epoch"])
def test_what_is_not_told_is_asked_for(by):
    masking = AdversarialMasking(strength=dict(start=0, end=1, until=5, by=by))
    with pytest.raises(ValueError, match=rf"by='{by}' cannot know.*iteration=step, epoch=step /"):
        masking.set_progress(0.5)


def test_warm_up_freezes_the_network_and_leaves_its_gradient_zero():
    """Zero, not None: an optimizer and DDP see a gradient from the first step on."""
    torch.manual_seed(1)
    masking = AdversarialMasking(
        mask_ratio=0.5,
        patch_size=4,
        network=dict(channels=4),
        strength=dict(start=0.0, end=1.0, begin=2, until=4, by="iter"),
    )
    model, loss = Autoencoder(), CombinedAdversarialLoss()
    images = torch.randn(4, 3, 24, 24)
    moved = []
    for step in range(5):
        masking.set_progress(step / 5, iteration=step)
        patch_mask = masking(images)
        target = torch.randn(4, 36, 48)
        masking.zero_grad()
        loss(model(images, patch_mask), target, patch_mask).backward()
        gradients = [parameter.grad for parameter in masking.parameters()]
        assert all(gradient is not None for gradient in gradients)
        moved.append(any(bool(gradient.any()) for gradient in gradients))
    assert moved == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (
            dict(start=0, end=1, by="step"),
            ValueError,
            "by='progress', 'iter' or 'epoch', got 'step'",
        ),
        (dict(start=0, end=1, by="epoch"), ValueError, r"expected until=.*arrives.*by='progress'"),
        (dict(start=0, end=1, until=5), ValueError, "say by='iter' or by='epoch'. Got.*until=5"),
        (dict(start=0, end=1, begin=6, until=5, by="iter"), ValueError, "begin <= until"),
        (dict(start=0, end=1, begin=-1, until=5, by="iter"), ValueError, "begin <= until"),
        (dict(start=0, end=1, until=float("inf"), by="iter"), ValueError, "begin <= until"),
        (dict(start=0, end=1, until=float("nan"), by="iter"), ValueError, "begin <= until"),
        (dict(start=0, end=2), ValueError, r"strength must lie in \[-1, 1\], got 2"),
        (dict(start=0, end=1, by_epoch=True), TypeError, "does not take by_epoch; it takes start"),
        (
            dict(end=1.0),
            TypeError,
            "strength 'linear' expected start, got",
        ),
        (dict(start=0, end=1, by="step"), ValueError, "^strength: a schedule counts by"),
        (dict(type="cosine"), ValueError, "unknown strength type 'cosine'; expected .*'linear'"),
    ],
)
def test_wrong_schedules_are_refused(schedule, error, message):
    with pytest.raises(error, match=message):
        AdversarialMasking(strength=schedule)


@pytest.mark.parametrize(("progress", "strength"), [(1.1, 1.0), (-0.1, -1.0)])
def test_beyond_the_training_the_nearest_end_counts_with_a_warning(progress, strength):
    """A run is not stopped by a wrong number of steps, as of a loop that counts two optimizers."""
    masking = AdversarialMasking(strength=dict(start=-1, end=1))
    masking.set_progress(0.5)
    with pytest.warns(UserWarning, match=rf"in \[0, 1\], got {progress}: the nearest end"):
        masking.set_progress(progress)
    assert masking.strength == strength
    assert masking.progress[0] == (progress > 0)


@pytest.mark.parametrize("given", [(float("nan"),), (0.5, float("nan")), (0.5, 1, float("nan"))])
def test_a_progress_that_is_not_a_number_is_refused(given):
    masking = AdversarialMasking(strength=dict(start=-1, end=1))
    with pytest.raises(ValueError, match="set_progress expected numbers, got nan"):
        masking.set_progress(*given)
    for wrong in ("a", None):
        with pytest.raises((TypeError, ValueError), match="set_progress expected numbers"):
            masking.set_progress(wrong or "0.5")
    assert masking.strength == -1


@pytest.mark.parametrize("start", [None, "0", [1]])
def test_an_end_that_is_no_number_is_refused(start):
    with pytest.raises(TypeError, match="goes from one number to another, got start="):
        AdversarialMasking(strength=dict(start=start, end=1.0))


RANGES = {
    "fixed": (lambda ratio: AdversarialMasking(ratio, 16), "ratio=0.99 of 16 patches leaves none"),
    "random": (lambda ratio: RandomMasking(ratio, 16), "ratio=0.99 of 16 patches leaves none"),
    "tracking": (
        lambda ratio: AdversarialMasking(ratio, 16, threshold=dict(type="tracking")),
        r"mask_ratio=0.99 must lie inside ratio_range=\(0.05, 0.95\)",
    ),
}


@pytest.mark.parametrize("kind", RANGES)
def test_both_ends_of_a_ratio_are_checked_at_the_first_mask(kind):
    make, message = RANGES[kind]
    for schedule in (dict(start=0.5, end=0.99), dict(start=0.99, end=0.5)):
        with pytest.raises(ValueError, match=message):
            make(schedule)(torch.randn(2, 3, 64, 64))
    make(dict(start=0.5, end=0.7))(torch.randn(2, 3, 64, 64))
