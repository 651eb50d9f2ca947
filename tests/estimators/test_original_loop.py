"""The specification's loop to the letter: scores that are not standardised, a threshold made of
them, one backward, one optimizer. For 1,000 steps of a small masked autoencoder that learns with
it, no estimator may let the scores go to 0 at the masked patches or to 1 at all, nor the ratio to
an end of its range, and the masks are harder (easier) than random ones.
"""

from __future__ import annotations

from itertools import product

import pytest

from amn_masking.estimators import ESTIMATORS
from amn_masking.thresholds import THRESHOLDS
from benchmarks.original_loop import HELD, loop, train
from tests.conftest import THOROUGH, thorough_only

pytestmark = pytest.mark.thorough

# make test-thorough: all of it, for as long as the specification's own threshold below.
CASES = [(False, 0), (False, 1), (False, 2), (True, 0)] if THOROUGH else [(False, 0)]
LONG, SHORT = dict(steps=1000, batch=32), dict(steps=300, batch=16)
# A constant's ratio is the network's to choose, and `difficulty` moves its own: both may go to an
# end of the range, where the threshold chooses the patches in the order of their scores.
TO_AN_END = ("constant", "difficulty")


def check(found, strength, threshold="mean", ends_low=False):
    """Raise AssertionError if a training ended as what collapses does.

    There all logits of an image go down together, those of the masked patches as well, whose mean
    score is then 0.08 at most, with `quantile` at -1 0.01. With the estimators whose gradients sum
    to 0 it is 0.25 at least, and there 0.07 (docs/results/original_loop.md). Three cases end alike
    at -1: `constant`, `mean` with inclusion, and `difficulty` with ranking, which has no tau to
    hold. Of 1,000 steps.
    """
    low, high = (0.0, 1.0) if threshold in TO_AN_END else (0.1, 0.9)
    assert low <= found.ratio <= high, found
    if not ends_low and (strength > 0 or threshold != "constant"):
        least = 0.02 if strength < 0 and threshold == "quantile" else 0.15
        assert found.masked_score > least, found
    at_most = 0.75 if threshold in TO_AN_END else 0.6
    assert found.at_zero + found.at_one < at_most, found
    assert found.gain > 1.02 if strength > 0 else found.gain < 0.98, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strength", [1.0, -1.0])
@pytest.mark.parametrize(
    ("seed", "noise"),
    list(product(range(3), (0.0, 1.0))) if THOROUGH else [(0, 0.0)],
)
def test_the_original_loop_to_the_letter(seed, noise, strength):
    estimator = dict(type="straight_through", noise=noise)
    check(train(seed=seed, estimator=estimator, **loop("mean", strength)), strength)


PAIRS = list(product(ESTIMATORS, THRESHOLDS))
# Else the specification's own threshold with the default estimator, what the unbiased one is for,
# and each estimator and each threshold twice, with both signs, as far as they are not refused and
# not what the test above trains, but for the noise.
ALWAYS = [("inclusion", "mean"), ("score_function", "quantile")]
ABOVE = ("straight_through", "mean")
ESTIMATOR_NAMES, THRESHOLD_NAMES = list(ESTIMATORS), list(THRESHOLDS)
SIGNED = [
    (estimator, threshold, strength)
    for estimator, threshold in PAIRS
    for place, strength in enumerate((1.0, -1.0))
    if THOROUGH
    or (estimator, threshold) in ALWAYS
    or (
        (ESTIMATOR_NAMES.index(estimator) + place) % len(THRESHOLDS)
        == THRESHOLD_NAMES.index(threshold)
        and (estimator, threshold) != ABOVE
    )
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("estimator", "threshold", "strength", "standardise", "seed"),
    [(*signed, *case) for case, signed in product(CASES, SIGNED)]
    + ([] if THOROUGH else [("inclusion", "quantile", 1.0, True, 0)]),  # the default
)
def test_every_estimator_with_every_threshold(estimator, threshold, strength, standardise, seed):
    settings = loop(threshold, strength) | dict(
        standardise=standardise, estimator=dict(type=estimator)
    )
    refused = None
    if estimator == "score_function" and threshold == "difficulty":
        refused = "expected random_share=0, because the log-prob"
    elif estimator == "score_function" and threshold == "mean" and not standardise:
        refused = "expected standardise=True, because the mean error"
    if refused:
        with pytest.raises(ValueError, match=refused):
            train(1, **settings)
        return
    # At -1 the masks of `mean` are on the right side of the bound after 1,000 steps, not after 300.
    length = LONG if THOROUGH or (threshold == "mean" and strength < 0) else SHORT
    case = (estimator, threshold, strength, standardise)
    ends_low = case == ("ranking", "difficulty", -1.0, False)
    check(train(**length, seed=seed, **settings), strength, threshold, ends_low)


@thorough_only
@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, -1.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_standardised_logits_with_the_mean_of_their_scores(estimator, strength):
    found = train(
        **SHORT, strength=strength, threshold=dict(type="mean"), estimator=dict(type=estimator)
    )
    check(found, strength)


@thorough_only
@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, -1.0])
@pytest.mark.parametrize("name", HELD)
def test_what_holds_tau_still_fails(name, strength):
    if (name, strength) == ("inclusion", -1.0):
        pytest.skip("ends where the exact gradient does: docs/estimators.md")
    found = train(estimator=HELD[name], **loop("mean", strength))
    with pytest.raises(AssertionError, match="Ended"):
        check(found, strength)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, -1.0])
@pytest.mark.parametrize("threshold", ["quantile", "tracking", "difficulty"])
def test_so_it_does_with_every_threshold(threshold, strength):
    length = LONG if THOROUGH else SHORT
    found = train(estimator=HELD["straight_through"], **length, **loop(threshold, strength))
    with pytest.raises(AssertionError, match="Ended"):
        check(found, strength, threshold)


@thorough_only
@pytest.mark.slow
def test_so_it_does_with_a_constant_which_takes_longer():
    """And at -1 ends alike: docs/results/original_loop.md."""
    found = train(estimator=HELD["straight_through"], **loop("constant", 1.0))
    with pytest.raises(AssertionError, match="Ended"):
        check(found, 1.0, "constant")


@pytest.mark.slow
def test_it_fails_within_the_length_of_ci():
    held = HELD["straight_through, no noise"]
    found = train(**SHORT, estimator=held, **loop("mean", 1.0))
    with pytest.raises(AssertionError, match="Ended"):
        check(found, 1.0)
