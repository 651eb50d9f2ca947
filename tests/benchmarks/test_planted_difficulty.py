"""Trained against a frozen autoencoder, the masking network gets where its sign says."""

from __future__ import annotations

import pytest

from benchmarks.planted_difficulty import ESTIMATORS, PROBLEMS
from tests.conftest import THOROUGH

# In CI the default, and the unbiased one where errors depend on the rest of the mask.
pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("estimator", ESTIMATORS if THOROUGH else ["inclusion"])
def test_errors_that_do_not_depend_on_the_mask(estimator):
    """300 steps close 90 % of the gap between random and the oracle, the top K."""
    problem = PROBLEMS["alone"]
    best, random, worst = problem.best_random_worst(seed=0)
    assert problem.reached(estimator, 1.0) > random + 0.9 * (best - random)
    assert problem.reached(estimator, -1.0) < random - 0.9 * (random - worst)


@pytest.mark.parametrize("estimator", ESTIMATORS if THOROUGH else ["inclusion", "score_function"])
def test_errors_that_grow_where_neighbours_are_masked(estimator):
    """500 steps reach 90 % of the best of the 126 masks of 4 patches in 3 x 3."""
    problem = PROBLEMS["lonely"]
    best, random, _ = problem.best_random_worst(seed=0)
    assert problem.reached(estimator, 1.0) > 0.9 * best
    assert problem.reached(estimator, -1.0) < 0.5 * random


@pytest.mark.parametrize(
    ("estimator", "share"),
    # The biased estimators stop short where errors depend on the rest of the mask most: see
    # docs/estimators.md.
    [("inclusion", 0.68), ("score_function", 0.9)]
    + ([("gumbel", 0.68), ("ranking", 0.68)] if THOROUGH else []),
)
def test_inpainting_from_visible_neighbours(estimator, share):
    """1000 steps on eight images; how hard a patch is, is up to its neighbours alone."""
    problem = PROBLEMS["inpaint"]
    best, random, _ = problem.best_random_worst(seed=0)
    up = problem.reached(estimator, 1.0)
    assert up > share * best
    assert up > 1.15 * random
    assert problem.reached(estimator, -1.0) < 0.75 * random
