"""``valid``: a patch without data is never masked, never in a loss, and as if it were not there."""

from __future__ import annotations

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, RandomMasking
from amn_masking.counts import count_masked
from amn_masking.estimators import ESTIMATORS
from amn_masking.meters import at_random
from amn_masking.patches import patchify, spread_to_pixels
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    OracleMasking,
    RandomRatioMasking,
    ShuffledMasking,
)
from amn_masking.thresholds import Candidates, Difficulty, Mean, Quantile, Tracking
from tests.helpers.autoencoder import Autoencoder
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of

GRID, LENGTH, BATCH = (6, 6), 36, 4
FREE = {kind: dict(threshold=dict(type=kind)) for kind in ("mean", "tracking")}
FREE["difficulty"] = dict(threshold=dict(type="difficulty"), random_share=0.3)
STRATEGIES = {
    "random": lambda: RandomMasking(0.5, SIDE),
    "block": lambda: BlockMasking(0.5, SIDE),
    "color noise": lambda: ColorNoiseMasking(0.5, SIDE),
    "attention": lambda: AttentionMasking(0.5, SIDE, 0.3, brightness),
    "oracle": lambda: OracleMasking(0.5, SIDE, brightness),
    "hard patches": lambda: HardPatchMasking(0.5, SIDE),
    "random ratio": lambda: RandomRatioMasking(RandomMasking(patch_size=SIDE), (0.5, 0.5)),
    **{
        estimator: lambda estimator=estimator: AdversarialMasking(
            0.5, SIDE, estimator=dict(type=estimator), random_share=0.25
        )
        for estimator in ESTIMATORS
    },
    **{
        kind: lambda more=more: AdversarialMasking(None, SIDE, **dict(random_share=0.0) | more)
        for kind, more in FREE.items()
    },
    "raw": lambda: AdversarialMasking(
        0.5, SIDE, standardise=False, entropy_weight=0.5, reward="variance_normalised"
    ),
    "gate": lambda: AdversarialMasking(0.5, SIDE, gate=True),
}
each_strategy = pytest.mark.parametrize("name", STRATEGIES)
TRAINS = [
    name for name in STRATEGIES if name in ESTIMATORS or name in FREE or name in ("raw", "gate")
]
each_that_trains = pytest.mark.parametrize("name", TRAINS)


def some_valid(seed=0):
    """``(BATCH, LENGTH)``: 24 valid patches of each image, in places of its own."""
    noise = torch.rand(BATCH, LENGTH, generator=generator(seed))
    return noise.argsort(1).argsort(1) < 24


def without_data(images, valid, kind):
    """The images with something else where there is no data."""
    invalid = ~spread_to_pixels(valid, GRID, *images.shape[-2:])
    other = torch.full_like(images, float("nan")) if kind == "nan" else 9 * torch.randn_like(images)
    return torch.where(invalid, other, images)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@each_strategy
def test_what_has_no_data_is_never_masked_and_the_count_is_exact(name, training):
    strategy, images = STRATEGIES[name]().train(training), images_of(GRID, BATCH)
    for seed in range(20):
        valid = some_valid(seed)
        patch_mask = strategy(images, generator(seed), valid)
        assert not patch_mask.mask[~valid].any()
        assert torch.equal(patch_mask.valid, valid)
        if name in FREE:
            assert ((patch_mask.mask.sum(1) >= 1) & (patch_mask.mask.sum(1) < 24)).all()
        else:
            assert (patch_mask.mask.sum(1) == count_masked(LENGTH, 0.5)).all()
        if patch_mask.learned is not None:
            learned = patch_mask.learned
            assert torch.equal(learned.surrogate, patch_mask.mask)
            if learned.drawn_at_random is not None:
                assert not learned.drawn_at_random[~valid].any()


@pytest.mark.parametrize("kind", ["noise", "nan"])
@each_strategy
def test_the_mask_does_not_know_what_stands_where_there_is_no_data(name, kind):
    valid, images = some_valid(), images_of(GRID, BATCH)
    strategy = STRATEGIES[name]()
    state = {key: value.clone() for key, value in strategy.state_dict().items()}
    one = strategy(images, generator(1), valid)
    strategy.load_state_dict(state)
    two = strategy(without_data(images, valid, kind), generator(1), valid)
    assert torch.equal(one.ids_shuffle, two.ids_shuffle)
    assert torch.equal(one.mask, two.mask)
    if one.learned is not None:
        for part in ("logits", "threshold", "patch_scores", "score_map"):
            assert torch.equal(getattr(one.learned, part), getattr(two.learned, part)), part


def one_step(name, images, valid):
    """Loss, and gradients of the autoencoder and of the masking network."""
    torch.manual_seed(0)
    model, masking = Autoencoder(), STRATEGIES[name]()
    patch_mask = masking(images, generator(1), valid)
    pred = model(patch_mask.fill_invalid(images), patch_mask)
    loss = CombinedAdversarialLoss()(pred, patchify(images, (SIDE, SIDE)), patch_mask)
    loss.backward()
    parameters = [*model.parameters(), *masking.parameters()]
    return [loss.detach(), *(p.grad for p in parameters), *masking.buffers()]


@pytest.mark.parametrize("kind", ["noise", "nan"])
@each_that_trains
def test_a_step_is_the_same_bit_for_bit_whatever_stands_there(name, kind):
    valid, images = some_valid(), images_of(GRID, BATCH)
    one = one_step(name, images, valid)
    two = one_step(name, without_data(images, valid, kind), valid)
    for x, y in zip(one, two, strict=True):
        assert torch.equal(x, y)
    assert all(torch.isfinite(x).all() for x in two)


@pytest.mark.parametrize("images", [True, False], ids=["images", "patches"])
@pytest.mark.parametrize("reconstruct", ["masked", "all"])
def test_no_loss_counts_what_has_no_data(reconstruct, images):
    valid, target = some_valid(), images_of(GRID, BATCH)
    patch_mask = AdversarialMasking(0.5, SIDE)(target, None, valid).detach()
    criterion = CombinedAdversarialLoss(reconstruct=reconstruct)
    start = torch.randn_like(target)
    results = []
    for kind in ("noise", "nan"):
        pred = start.clone().requires_grad_()
        pair = (pred, without_data(target, valid, kind))
        if not images:
            pair = tuple(patchify(x, (SIDE, SIDE)) for x in pair)
        loss = criterion(*pair, patch_mask)
        loss.backward()
        results.append((loss.detach(), pred.grad))
        assert not pred.grad[~spread_to_pixels(valid, GRID, 24, 24).expand_as(pred)].any()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    counted = valid if reconstruct == "all" else patch_mask.mask.bool()
    error = (patchify(start, (SIDE, SIDE)) - patchify(target, (SIDE, SIDE))).square().mean(-1)
    terms = criterion.terms(start, target, patch_mask)
    assert terms.reconstruction.item() == pytest.approx(
        error[counted].mean().item() * (1 if reconstruct == "all" else 3), rel=1e-5
    )


@pytest.mark.parametrize(
    ("threshold", "ratio"), [(Quantile(), 0.5), (Mean(), None), (Tracking().eval(), 0.5)]
)
def test_tau_separates_the_valid_patches(threshold, ratio):
    valid, logits = some_valid(), torch.randn(BATCH, LENGTH)
    selection = threshold(Candidates(logits, GRID, logits.sigmoid(), ratio, valid=valid))
    mask = selection.patch_mask.mask.bool()
    assert torch.equal((logits > selection.tau) & valid, mask)
    if isinstance(threshold, Mean):
        mean = logits.sigmoid()[valid].reshape(BATCH, 24).mean(1, keepdim=True)
        torch.testing.assert_close(selection.tau.sigmoid(), mean)


def test_the_random_share_is_drawn_evenly_from_the_valid_patches():
    valid = torch.zeros(4000, 12, dtype=torch.bool)
    valid[:, ::2] = True
    selection = Candidates(
        torch.arange(12.0).expand(4000, 12), (3, 4), random_share=0.5, valid=valid,
        generator=generator(0),
    ).select(4)  # fmt: skip
    drawn = selection.drawn_at_random.float()
    assert (drawn.sum(1) == 2).all()
    assert not drawn[~valid].any()
    assert (drawn[:, ::2].mean(0) - 1 / 3).abs().max() < 4 * (2 / 9 / 4000) ** 0.5


@pytest.mark.parametrize("threshold", [Tracking(), Difficulty()])
def test_what_has_no_data_moves_no_controller(threshold):
    valid = some_valid()
    states = []
    for fill in (0.0, 5.0):
        logits = torch.randn(BATCH, LENGTH, generator=generator(0)).where(valid, fill)
        other = type(threshold)()
        candidates = Candidates(
            logits, GRID, logits.sigmoid(), 0.3, 0.3, valid, generator=generator(1)
        )
        selection = other(candidates)
        error = torch.rand(BATCH, LENGTH, generator=generator(2)).where(valid, fill)
        other.observe(error, selection.patch_mask, selection.drawn_at_random)
        states.append(other.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert states[0]["level"] > 0


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in FREE])
def test_too_few_valid_patches_are_refused_with_their_images(name):
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[2, 18:] = False  # 18 valid, 18 to be masked: none would be visible
    with pytest.raises(ValueError, match=r"more valid.* images \[2\] .* have \[18\] valid of 36"):
        STRATEGIES[name]().eval()(images_of(GRID, BATCH), None, valid)
    valid[2, 18] = True
    STRATEGIES[name]().eval()(images_of(GRID, BATCH), None, valid)


@pytest.mark.parametrize("name", FREE)
def test_free_counts_take_less_of_an_image_with_few_valid_patches(name):
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[1, 2:] = False
    mask = STRATEGIES[name]()(images_of(GRID, BATCH), None, valid).mask
    assert mask[1].sum() == 1
    valid[1, 1:] = False
    with pytest.raises(ValueError, match=r"images \[1\] .* have \[1\] valid"):
        STRATEGIES[name]()(images_of(GRID, BATCH), None, valid)


def test_a_patch_with_a_pixel_without_data_is_not_valid():
    pixels = torch.ones(BATCH, 24, 24, dtype=torch.bool)
    pixels[0, 5, 9] = False  # patch (1, 2)
    pixels[1, 20:] = False  # the last row
    patch_mask = RandomMasking(0.5, SIDE)(images_of(GRID, BATCH), None, pixels)
    expected = torch.ones(BATCH, *GRID, dtype=torch.bool)
    expected[0, 1, 2] = expected[1, 5] = False
    assert torch.equal(patch_mask.valid, expected.flatten(1))


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (torch.ones(BATCH, LENGTH), TypeError, "valid expected bool, True where there is data"),
        (torch.ones(BATCH, 35).bool(), ValueError, r"\(4, 36\) patches or .* \(4, 24, 24\) pixels"),
        (torch.ones(2, LENGTH).bool(), ValueError, r"got \(2, 36\)"),
        ([[True]], TypeError, "valid expected a torch.Tensor, got list"),
    ],
)
@pytest.mark.parametrize("name", ["random", "block", "gumbel"])
def test_what_is_no_such_mask_is_refused(name, valid, error, message):
    with pytest.raises(error, match=message):
        STRATEGIES[name]()(images_of(GRID, BATCH), None, valid)


def test_shuffled_masks_ask_for_one_place_of_the_data():
    strategy, images = ShuffledMasking(AdversarialMasking(0.5, SIDE)), images_of(GRID, BATCH)
    with pytest.raises(ValueError, match="the same valid patches in all images"):
        strategy(images, None, some_valid())
    same = some_valid()[:1].expand(BATCH, -1)
    assert not strategy(images, None, same).mask[~same].any()


def test_random_masks_to_compare_with_leave_it_out_too():
    valid = some_valid()
    patch_mask = AdversarialMasking(0.5, SIDE)(images_of(GRID, BATCH), None, valid)
    masks = torch.stack([at_random(patch_mask, generator(seed)).mask for seed in range(300)])
    assert not masks[:, ~valid].any()
    assert (masks.sum(2) == 18).all()
    # Evenly: 18 of 24.
    assert (masks.mean(0)[valid] - 0.75).abs().max() < 4.5 * (0.1875 / 300) ** 0.5
