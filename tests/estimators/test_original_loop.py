"""The specification's loop to the letter: scores that are not standardised, a threshold made of
them, one backward, one optimizer. For 1,000 steps of a small masked autoencoder that learns with
it, no estimator may drive all scores to 0 or 1, or the ratio to an end of its range.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.estimators import ESTIMATORS, StraightThrough
from amn_masking.estimators.base import straight_through
from amn_masking.meters import adversarial_gain
from amn_masking.patches import patchify
from amn_masking.thresholds import THRESHOLDS
from benchmarks.tiny_mae import PATCH, TinyMAE, pictures
from tests.conftest import THOROUGH, thorough_only

pytestmark = pytest.mark.thorough


class HeldThreshold(StraightThrough):
    """What collapses: tau without a gradient, so that all logits of an image move together."""

    def surrogate(self, logits, priorities, selection):
        soft = torch.sigmoid((logits - selection.tau.detach()) / self.temperature)
        return straight_through(selection.patch_mask.mask, soft)


def train(steps=1000, seed=0, batch=32, **options):
    """Ratio of the last 50 masks, share of scores at the clamp, and gain over random masks."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed + 1000)
    model = TinyMAE()
    masking = AdversarialMasking(
        patch_size=PATCH, network=dict(channels=16, downsample=1), **options
    )
    optimizer = torch.optim.Adam([*model.parameters(), *masking.parameters()], lr=1e-3)
    criterion = CombinedAdversarialLoss()
    ratios = []
    for _ in range(steps):
        images = pictures(batch, draw)
        patch_mask = masking(images)
        loss = criterion(model(images, patch_mask), patchify(images, (PATCH, PATCH)), patch_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ratios.append(patch_mask.mask.mean().item())
    images = pictures(128, draw)
    with torch.no_grad():
        patch_mask = masking(images)
        gain = adversarial_gain(lambda mask: model.error(images, mask), patch_mask, draw).item()
    scores = patch_mask.learned.patch_scores
    clamped = ((scores < 2e-6) | (scores > 1 - 2e-6)).float().mean().item()
    return sum(ratios[-50:]) / 50, clamped, gain


# Share of the scores that may lie within 2e-6 of 0 or 1, where they have next to no gradient, by
# the sign of the strength. Easy patches are masked for certain in the end, by the unbiased
# estimator too; of the adversaries those that follow the exact gradient most closely go furthest.
# Measured at -1: straight_through up to 0.35 in three seeds, what collapses 0.53. At +1 the
# unbiased one, whose objective is the mean error of the masked patches, ends in four seeds of six
# with few patches that are 1.2 to 2.3 times as hard as random ones, and the scores of the others go
# to 0 (0.5 to 0.8 of all): of it only ratio and gain are bounded, and 0.9 is what a ratio of 0.1
# leaves unmasked.
CLAMPED = {
    1.0: dict(straight_through=0.1, score_function=0.9, ranking=0.1, gumbel=0.3, inclusion=0.6),
    -1.0: dict(straight_through=0.45, score_function=0.7, ranking=0.2, gumbel=0.7, inclusion=0.7),
}
# make test-thorough: all of it, for as long as the specification's own threshold above.
CASES = [(False, 0), (False, 1), (False, 2), (True, 0)] if THOROUGH else [(False, 0)]
# Over 1,000 steps batches of 16, which are noisier, clamp 0.23 of score_function's scores, 32 0.02.
LENGTH = dict(steps=1000, batch=32) if THOROUGH else dict(steps=300, batch=16)
# A constant's ratio is the network's to choose, and `difficulty` moves its own: both may go to an
# end of the range.
RATIOS = dict(constant=(0.05, 0.95), difficulty=(0.05, 0.95))


def check(found, strength, estimator="straight_through", threshold="mean"):
    ratio, clamped, gain = found
    low, high = RATIOS.get(threshold, (0.1, 0.9))
    assert low <= ratio <= high, found
    limit = CLAMPED[strength][estimator]
    if threshold in RATIOS:
        limit = max(limit, 0.7)  # at an end of the range all scores are large, or small
    assert clamped < limit, found
    # The autoencoder learns what is masked: with so noisy a gradient the masks may lag behind. Of
    # six seeds one had 1.10 after 500 steps, 0.83 after 1,000 and 1.23 after 1,500.
    least = 0.8 if (estimator, threshold) == ("score_function", "tracking") else 1.02
    assert gain > least if strength > 0 else gain < 0.98, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strength", [1.0, -1.0])
@pytest.mark.parametrize(
    ("seed", "noise"),
    list(product(range(3), (0.0, 1.0) if THOROUGH else (0.0,))),
)
def test_the_original_loop_to_the_letter(seed, noise, strength):
    found = train(
        seed=seed,
        strength=strength,
        threshold=dict(type="mean"),
        standardise=False,
        estimator=dict(type="straight_through", noise=noise),
    )
    check(found, strength)


PAIRS = list(product(ESTIMATORS, THRESHOLDS))
# Else each estimator and each threshold twice, with both signs.
ESTIMATOR_NAMES, THRESHOLD_NAMES = list(ESTIMATORS), list(THRESHOLDS)
SIGNED = [
    (estimator, threshold, strength)
    for estimator, threshold in PAIRS
    for place, strength in enumerate((1.0, -1.0))
    if THOROUGH
    or (ESTIMATOR_NAMES.index(estimator) + place) % len(THRESHOLDS)
    == THRESHOLD_NAMES.index(threshold)
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("estimator", "threshold", "strength"), SIGNED)
@pytest.mark.parametrize(("standardise", "seed"), CASES)
def test_every_estimator_with_every_threshold(estimator, threshold, strength, standardise, seed):
    """After 300 steps what collapses is on its way."""
    options = dict(type=threshold)
    if threshold == "difficulty":
        options["target_gain"] = 1.1 if strength > 0 else 0.9
    settings = dict(
        mask_ratio=0.5 if THRESHOLDS[threshold].takes_ratio else None,
        random_share=0.25 if threshold == "difficulty" else 0.0,
        strength=strength,
        threshold=options,
        standardise=standardise,
        estimator=dict(type=estimator),
    )
    if estimator == "score_function" and threshold == "difficulty":
        with pytest.raises(ValueError, match="expected random_share=0, because the log-prob"):
            train(1, **settings)
        return
    check(train(**LENGTH, seed=seed, **settings), strength, estimator, threshold)


@thorough_only
@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, -1.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_standardised_logits_with_the_mean_of_their_scores(estimator, strength):
    found = train(
        300, batch=16, strength=strength, threshold=dict(type="mean"),
        estimator=dict(type=estimator),
    )  # fmt: skip
    check(found, strength, estimator)


@thorough_only
@pytest.mark.slow
@pytest.mark.parametrize(("noise", "strength"), list(product((0.0, 1.0), (1.0, -1.0))))
def test_that_test_can_fail(noise, strength):
    """With tau held still the ratio goes to the floor, or the scores to 0 and 1."""
    found = train(
        strength=strength,
        threshold=dict(type="mean"),
        standardise=False,
        estimator=HeldThreshold(noise=noise),
    )
    with pytest.raises(AssertionError):
        check(found, strength)
