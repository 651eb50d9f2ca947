"""The laws of a mask hold on grids of one, two and three dimensions.

Exact counts, the partition in three, gather and scatter, permutations, pooling and patches are
drawn over all of them beside their parts (``tests/helpers/draws.py``); here is the whole path.
"""

from __future__ import annotations

import math

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, PatchMask, RandomMasking
from amn_masking.counts import count_masked
from amn_masking.estimators import ESTIMATORS
from amn_masking.meters import PositionMeter, adversarial_gain
from amn_masking.patches import patchify, spread_to_pixels
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    OracleMasking,
    RandomRatioMasking,
    ShuffledMasking,
    TubeMasking,
)
from tests.helpers.draws import generator
from tests.helpers.pictures import brightness, images_of, patch_of

GRIDS = {"signals": (24,), "images": (4, 6), "clips": (2, 3, 4)}
LENGTH, BATCH = 24, 4
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
OPTIONS = {
    **{name: dict(estimator=dict(type=name), random_share=0.25) for name in ESTIMATORS},
    "raw": dict(standardise=False, entropy_weight=0.5, reward="variance_normalised"),
    "gate": dict(gate=True, network=dict(norm="group", channels=4)),
}
STRATEGIES = {
    "random": lambda patch: RandomMasking(0.5, patch),
    "color noise": lambda patch: ColorNoiseMasking(0.5, patch),
    "attention": lambda patch: AttentionMasking(0.5, patch, 0.3, brightness),
    "oracle": lambda patch: OracleMasking(0.5, patch, brightness),
    "hard patches": lambda patch: HardPatchMasking(0.5, patch),
    "random ratio": lambda patch: RandomRatioMasking(RandomMasking(patch_size=patch), (0.5, 0.5)),
    "left out": lambda patch: AdversarialMasking(0.75, patch, prediction_ratio=0.25),
    "free counts": lambda patch: AdversarialMasking(None, patch, threshold=dict(type="mean")),
    **{
        name: lambda patch, more=more: AdversarialMasking(0.5, patch, **more)
        for name, more in OPTIONS.items()
    },
}
TUBES = {  # of clips alone, in two slots: the strategy within has patches of both
    "tubes": lambda patch: TubeMasking(AdversarialMasking(0.5, patch), 2),
    "tubes, left out": lambda patch: TubeMasking(
        AdversarialMasking(0.75, patch, prediction_ratio=0.25), 2
    ),
    "tubes, free counts": lambda patch: TubeMasking(
        AdversarialMasking(None, patch, threshold=dict(type="mean")), 2
    ),
    "tubes, random": lambda patch: TubeMasking(RandomMasking(0.5, patch), 2),
    "tubes, block": lambda patch: TubeMasking(BlockMasking(0.5, patch, 2), 2),
}
LEARN = ["hard patches", "left out", "free counts", *OPTIONS]
RANDOM = ("random", "color noise", "random ratio", "tubes, random", "tubes, block")
CASES = {f"{name}-{kind}": (name, grid) for name in STRATEGIES for kind, grid in GRIDS.items()}
CASES |= {f"{name}-clips": (name, GRIDS["clips"]) for name in TUBES}
each_case = pytest.mark.parametrize(("name", "grid"), CASES.values(), ids=CASES)
LEARNING = {
    case: (name, grid)
    for case, (name, grid) in CASES.items()
    if name in LEARN or (name in TUBES and name not in RANDOM)
}


def made(name, grid):
    """The strategy, and images that it is for."""
    torch.manual_seed(0)
    patch = patch_of(grid)
    if name in TUBES:
        return TUBES[name]((grid[0] * patch[0], *patch[1:])), images_of(grid, BATCH)
    return STRATEGIES[name](patch), images_of(grid, BATCH)


@each_case
def test_in_eval_a_mask_follows_from_its_image_alone(name, grid):
    strategy, images = made(name, grid)
    strategy.eval()
    if name in RANDOM:  # by nature, there too
        assert not torch.equal(strategy(images).mask, strategy(images).mask)
        return
    before, order = torch.get_rng_state(), torch.tensor([2, 0, 3, 1])
    one, again, permuted = strategy(images), strategy(images), strategy(images[order])
    assert torch.equal(torch.get_rng_state(), before)
    assert one.grid == grid
    assert torch.equal(one.ids_shuffle, again.ids_shuffle)
    assert torch.equal(permuted.mask, one.mask[order])
    assert torch.equal(permuted.predicted, one.predicted[order])


@pytest.mark.parametrize("pixels", [True, False], ids=["pixels", "patches"])
@each_case
def test_what_has_no_data_is_never_chosen_and_the_mask_does_not_know_it(name, grid, pixels):
    strategy, images = made(name, grid)
    slots = 2 if name in TUBES else 1
    places = torch.rand(BATCH, LENGTH // slots, generator=generator(1))
    valid = (places.argsort(1).argsort(1) < 20 // slots).repeat(1, slots)
    size = images.shape[2:]
    given = valid
    if pixels:  # one pixel without data is enough
        given = spread_to_pixels(valid, grid, *size)[:, 0]
        corner = tuple(slice(None, None, 4) for _ in grid)
        given = torch.ones_like(given)
        given[(slice(None), *corner)] = valid.reshape(BATCH, *grid)
    patch_mask = strategy(images, generator(2), given)
    assert torch.equal(patch_mask.valid, valid)
    assert not patch_mask.mask[~valid].any()
    if "free counts" in name:
        assert ((patch_mask.mask.sum(1) >= 1) & (patch_mask.mask.sum(1) < 20)).all()
    else:
        ratio = 0.75 if "left out" in name else 0.5
        assert (patch_mask.mask.sum(1) == count_masked(LENGTH, ratio)).all()
    holes = ~spread_to_pixels(valid, grid, *size)
    other = strategy(images.masked_fill(holes, float("nan")), generator(2), given)
    assert torch.equal(patch_mask.ids_shuffle, other.ids_shuffle)


@pytest.mark.parametrize(("name", "grid"), LEARNING.values(), ids=LEARNING)
def test_a_step_reaches_the_network_and_the_surrogate_is_the_mask(name, grid):
    strategy, images = made(name, grid)
    patch_mask = strategy(images, generator(3))
    assert torch.equal(patch_mask.learned.surrogate, patch_mask.predicted)
    assert patch_mask.learned.score_map.dim() == len(grid) + 2
    target = patchify(images, patch_of(grid))
    pred = (0.5 * target).requires_grad_()
    CombinedAdversarialLoss()(pred, target, patch_mask).backward()
    assert ((pred.grad != 0).any(-1) == patch_mask.predicted.bool()).all()
    for parameter in strategy.parameters():
        assert parameter.grad.abs().max() > 0


@each_grid
def test_the_network_learns_where_the_error_is(grid):
    """Half of the patches are bright and hard: after some steps they are what is masked."""
    torch.manual_seed(0)
    masking = AdversarialMasking(0.5, patch_of(grid), dict(channels=8))
    optimizer = torch.optim.Adam(masking.parameters(), 0.02)
    for step in range(30):
        hard = torch.rand(16, LENGTH, generator=generator(step)).argsort(1).argsort(1) < LENGTH // 2
        size = [4 * parts for parts in grid]
        bright = spread_to_pixels(hard.float(), grid, *size)
        images = 0.1 * torch.randn(16, 3, *size) + bright
        patch_mask = masking(images)
        error = hard.float().requires_grad_()
        optimizer.zero_grad()
        masking.total_loss(error.mean(), error, patch_mask).backward()
        optimizer.step()
    found = masking.eval()(images).mask
    assert (found * hard).sum() / found.sum() > 0.9
    gain = adversarial_gain(lambda mask: hard.float(), masking(images), generator(0))
    assert gain > 1.5


@pytest.mark.parametrize("grid", [(48,), (6, 8), (4, 4, 6), (4, 8, 8)], ids=str)
def test_ties_in_eval_are_spread_over_every_axis(grid):
    """No slot, row or column is masked much more than another, and no half of an axis."""
    strategy = HardPatchMasking(0.5, patch_of(grid), dict(num_layers=1, kernel_size=1)).eval()
    mask = strategy(torch.zeros(1, 3, *[4 * parts for parts in grid])).mask.reshape(grid)
    assert mask.sum() == math.prod(grid) // 2
    for axis, parts in enumerate(grid):
        if len(grid) > 1:
            for index in range(parts):
                assert mask.select(axis, index).mean().item() == pytest.approx(0.5, abs=0.2)
        half = mask.narrow(axis, 0, parts // 2).mean().item()
        assert half == pytest.approx(0.5, abs=0.1)


@each_grid
def test_masks_made_elsewhere_say_their_grid(grid):
    mask = torch.rand(BATCH, LENGTH, generator=generator(4)).argsort(1) < 9
    flat = PatchMask.from_mask(mask, grid)
    assert flat.grid == grid
    if len(grid) > 1:
        assert PatchMask.from_mask(mask.reshape(BATCH, *grid)).grid == grid
        assert torch.equal(PatchMask.from_mask(mask.reshape(BATCH, *grid)).mask, flat.mask)
    images = images_of(grid, BATCH)
    flat.check_grid(images, patch_of(grid), "the encoder", grid)
    meter = PositionMeter()
    meter.update(flat.mask, flat.grid)
    assert meter.grid == grid
    with pytest.raises(ValueError, match=r"the encoder expected a mask of \(B, \*grid\)"):
        flat.check_grid(images[:2], patch_of(grid), "the encoder")
    with pytest.raises(ValueError, match=f"for a {' x '.join(map(str, grid))} grid with 15 vis"):
        flat.gather_visible(torch.zeros(BATCH, LENGTH + 1, 2))


@each_grid
def test_inputs_of_other_dimensions_are_refused_with_what_came(grid):
    masking, images = AdversarialMasking(0.5, patch_of(grid)), images_of(grid, BATCH)
    for other in GRIDS.values():
        if len(other) != len(grid):
            with pytest.raises(ValueError, match=r"expected images of shape \(B, C, .*; patch_siz"):
                masking(images_of(other, BATCH))
    last = images.movedim(1, -1)
    if min(last.shape[1:-1]) > 4:
        order = ", ".join(map(str, (0, len(grid) + 1, *range(1, len(grid) + 1))))
        with pytest.raises(ValueError, match=rf"channels-last; give images.permute\({order}\)"):
            masking(last)
    with pytest.raises(ValueError, match=r"valid expected \(B, L\) = \(4, 24\) patches or \(B, "):
        masking(images, None, torch.ones(BATCH, 5).bool())


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_a_volume_of_few_columns_is_not_taken_for_channels_last(columns):
    volumes = torch.randn(2, 8, 16, 16, 4)  # of 8 channels
    for make in (RandomMasking, AdversarialMasking):
        options = dict(network=dict(in_channels=8)) if make is AdversarialMasking else {}
        patch_mask = make(0.5, (8, 8, columns), **options)(volumes)
        assert patch_mask.grid == (2, 2, 4 // columns)
    with pytest.raises(ValueError, match=r"channels-last; give images.permute\(0, 4, 1, 2, 3\)"):
        RandomMasking(0.5, (8, 8, 8))(volumes)
    with pytest.raises(ValueError, match=r"channels-last; give images.permute\(0, 3, 1, 2\)"):
        RandomMasking(0.5, 4)(torch.randn(2, 16, 16, 4))  # images, as ever


def test_frames_before_channels_are_named():
    clips = torch.randn(2, 8, 3, 16, 16)
    message = r"\(2, 8, 3, 16, 16\).* frames before channels; give images.transpose\(1, 2\)"
    with pytest.raises(ValueError, match=message):
        RandomMasking(0.5, (2, 8, 8))(clips)
    RandomMasking(0.5, (2, 8, 8))(clips.transpose(1, 2))
    RandomMasking(0.5, (1, 8, 8))(clips)  # 8 channels of 3 slices: no one can tell


@each_grid
def test_wrappers_follow_the_grid(grid):
    images = images_of(grid, BATCH)
    shuffled = ShuffledMasking(AdversarialMasking(0.5, patch_of(grid)))
    assert shuffled.patch_size == patch_of(grid)
    assert shuffled(images).grid == grid
    with pytest.raises(ValueError, match=r"works on patches of \(7,\) pixels"):
        shuffled.require("the host", (7,))
