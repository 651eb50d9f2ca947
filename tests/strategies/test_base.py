"""Strategies beside the adversarial one, and strategies around others."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking, PatchMask, RandomMasking
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    OracleMasking,
    RandomRatioMasking,
    ShuffledMasking,
)
from tests.helpers import draws

SIDE = 4  # pixels of a patch


def brightness(images):
    """A score of each patch that needs no network: its mean."""
    return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), SIDE).flatten(1)


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
NOISE = ("block", "red", "green", "blue", "purple")


def images_of(grid, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, grid[0] * SIDE, grid[1] * SIDE, generator=generator)


def generator(seed):
    return torch.Generator().manual_seed(seed)


# --- laws of all


@pytest.mark.parametrize("kind", RANKED)
@given(case=draws.lengths_and_ratios(), batch=draws.batches, seed=draws.seeds)
def test_the_count_is_mae_s_own_and_the_mask_a_mask(kind, case, batch, seed):
    grid, ratio = case
    strategy, images = RANKED[kind](ratio, SIDE), images_of(grid, batch, seed)
    patch_mask = strategy(images, generator(seed))
    length = grid[0] * grid[1]
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


# --- blocks


def boundary(mask, grid):
    """Neighbouring patches of which one is masked, per masked patch."""
    square = mask.reshape(-1, *grid)
    edges = (square[:, 1:] != square[:, :-1]).sum((1, 2)) + (
        square[:, :, 1:] != square[:, :, :-1]
    ).sum((1, 2))
    return (edges / mask.sum(1)).mean().item()


@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.6, 0.75])
def test_blocks_have_less_boundary_than_single_patches(ratio):
    grid, images = (14, 14), images_of((14, 14), 200)
    block = BlockMasking(ratio, SIDE)(images, generator(0)).mask
    random = RandomMasking(ratio, SIDE)(images, generator(0)).mask
    assert boundary(block, grid) < 0.45 * boundary(random, grid)


def test_a_block_that_fits_exactly_is_a_rectangle_but_for_what_is_trimmed():
    """min_patches = all that is masked: one rectangle, give or take its rounding."""
    grid = (12, 12)
    strategy = BlockMasking(0.25, SIDE, min_patches=36, min_aspect=1.0)  # 36 = 6 x 6
    mask = strategy(images_of(grid, 50), generator(0)).mask.reshape(-1, *grid)
    for image in mask:
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == 6
        assert image.sum() == 36
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def slow_blocks(grid, num_masked, least, min_aspect, numbers):
    """The first rectangle that covers each patch, one rectangle after the other."""
    first = torch.full(grid, float(len(numbers)))
    for index, (a, b, c, d) in enumerate(numbers):
        area = least + a * (num_masked - least)
        aspect = min_aspect ** -(2 * b - 1)
        tall = min(max(round(math.sqrt(area * aspect)), 1), grid[0])
        wide = min(max(round(area / tall), 1), grid[1])
        top, left = int(c * (grid[0] - tall + 1)), int(d * (grid[1] - wide + 1))
        for row in range(top, top + tall):
            for column in range(left, left + wide):
                first[row, column] = min(first[row, column].item(), index)
    return -first.flatten()


def test_blocks_are_those_of_a_slow_reference():
    grid, images = (9, 13), images_of((9, 13), 3)
    strategy = BlockMasking(0.5, SIDE, min_patches=6)
    num_masked = 9 * 13 - 58
    keys = strategy.keys(images, num_masked, generator(3))
    blocks = int(-keys.min().item())
    count = 4 + math.ceil(2 * math.log(1 - num_masked / 117) / math.log(1 - 6 / 117))
    assert blocks <= count
    numbers = torch.rand(3, count, 4, generator=generator(3)).tolist()
    for image in range(3):
        expected = slow_blocks(grid, num_masked, 6, 0.3, numbers[image])
        assert torch.equal(keys[image], expected)


# --- colour noise


def spectrum(strategy, grid=(32, 32), batch=400):
    """Mean power of the noise at each radial frequency, in cycles per patch."""
    field = strategy.keys(images_of(grid, batch), 1, generator(0)).reshape(batch, *grid)
    field = field - field.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(field).abs().square().mean(0)
    rows, columns = torch.fft.fftfreq(grid[0]), torch.fft.fftfreq(grid[1])
    radius = (rows[:, None] ** 2 + columns[None, :] ** 2).sqrt()
    return [power[(radius >= low) & (radius < low + 0.1)].mean().item() for low in (0.0, 0.2, 0.4)]


def test_each_colour_has_its_band():
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "red"))
    assert low > 5 * middle > 25 * high
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "blue"))
    assert 5 * low < middle < high
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "green"))
    assert middle > 2 * low
    assert middle > 2 * high
    low, middle, high = spectrum(ColorNoiseMasking(0.5, SIDE, "purple"))
    assert middle < 0.7 * low
    assert middle < 0.7 * high


def test_the_filter_is_a_difference_of_gaussians():
    """Beside a convolution by hand, in the middle of a field where no edge is near."""
    strategy = ColorNoiseMasking(0.5, SIDE, "green", low=1.5, high=3.0)
    images = images_of((24, 24), 2)
    noise = strategy.keys(images, 1, generator(4)).reshape(2, 24, 24)
    white = torch.randn(2, 48, 48, generator=generator(4))
    offsets = torch.arange(-12, 13).float()

    def blurred(width):
        # What a Gaussian is in frequencies, it is in space, sampled.
        kernel = torch.exp(-(offsets**2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
        plane = torch.nn.functional.conv2d(white[:, None], (kernel[:, None] * kernel)[None, None])
        return plane[:, 0]  # starts at (12, 12)

    expected = blurred(1.5) - blurred(3.0)
    assert torch.allclose(noise[:, 12:, 12:], expected[:, :12, :12], atol=1e-3)


# --- attention and oracle


def test_the_most_attended_patches_are_masked():
    images = images_of((7, 5), 6)
    mask = AttentionMasking(0.4, SIDE, attention=brightness)(images).mask.bool()
    for row, masked in zip(brightness(images), mask, strict=True):
        assert row[masked].min() > row[~masked].max()


def test_hints_are_a_random_share_of_those_and_are_refilled_with_the_next():
    images = images_of((8, 8), 2000)
    images[:] = images[:1]
    strategy = AttentionMasking(0.25, SIDE, hint_share=0.5, attention=brightness)
    mask = strategy(images, generator(0)).mask
    rank = brightness(images[:1])[0].argsort(descending=True)
    share = mask.mean(0)[rank]  # 16 are masked, 8 hints of the top 16, the next 8 in their place
    assert (mask.sum(1) == 16).all()
    assert share[:16].numpy() == pytest.approx(0.5, abs=0.06)
    assert (share[16:24] == 1).all()
    assert (share[24:] == 0).all()


def test_attention_and_oracle_ask_for_their_function():
    images = images_of((4, 4), 2)
    with pytest.raises(ValueError, match="expected attention=, a function from images"):
        AttentionMasking(0.5, SIDE)(images)
    with pytest.raises(ValueError, match="expected error=, a function from images"):
        OracleMasking(0.5, SIDE)(images)
    with pytest.raises(ValueError, match=r"expected to give \(2, 16\).*got \(2, 17\)"):
        AttentionMasking(0.5, SIDE, attention=lambda x: torch.zeros(2, 17))(images)
    with pytest.raises(ValueError, match=r"expected to give \(2, 16\).*got \(2, 15\)"):
        OracleMasking(0.5, SIDE, error=lambda x: torch.zeros(2, 15))(images)


# --- hard patches


def test_hard_patches_move_from_random_to_half_by_score():
    strategy, images = HardPatchMasking(0.5, SIDE), images_of((8, 8), 300)
    for progress, by_score in ((0.0, 0), (0.5, 8), (1.0, 16)):
        strategy.set_progress(progress)
        patch_mask = strategy(images, generator(0))
        assert (patch_mask.random.sum(1) == 32 - by_score).all()


def test_hard_patches_learn_the_order_of_the_errors():
    torch.manual_seed(0)
    strategy = HardPatchMasking(0.5, SIDE, random_share=0.5)
    optimizer = torch.optim.Adam(strategy.parameters(), lr=0.01)
    images = images_of((6, 6), 32)

    def agreement():
        scores = strategy.eval()(images).scores
        strategy.train()
        pairs = (scores[:, :, None] > scores[:, None]) == (
            brightness(images)[:, :, None] > brightness(images)[:, None]
        )
        return pairs.float().mean().item()

    before = agreement()
    for _ in range(60):
        patch_mask = strategy(images)
        loss = strategy.total_loss(torch.zeros(()), brightness(images).exp(), patch_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert agreement() > 0.85 > 0.7 > before


# --- around others


@given(seed=draws.seeds, low=st.floats(0.2, 0.8), width=st.floats(0.0, 0.15))
def test_the_drawn_ratio_lies_in_its_range(seed, low, width):
    inner = RandomMasking(0.5, SIDE)
    strategy = RandomRatioMasking(inner, (low, low + width))
    patch_mask = strategy(images_of((10, 10), 2), generator(seed))
    least, most = (draws.visible_reference(100, ratio) for ratio in (low + width, low))
    assert least <= patch_mask.num_visible <= most
    assert inner.mask_ratio == 0.5
    again = strategy(images_of((10, 10), 2), generator(seed))
    assert torch.equal(again.mask, patch_mask.mask)


def test_the_drawn_ratios_are_uniform():
    strategy, images = (
        RandomRatioMasking(BlockMasking(0.5, SIDE), (0.3, 0.7)),
        images_of((20, 20), 1),
    )
    ratios = torch.tensor([strategy(images).mask.mean().item() for _ in range(1500)])
    expected = torch.linspace(0.3, 0.7, 1500)
    distance = (ratios.sort().values - expected).abs().max().item() / 0.4
    assert distance < 1.95 / math.sqrt(1500)  # Kolmogorov, 0.1 %


def test_a_learned_mask_takes_the_drawn_ratio():
    strategy = RandomRatioMasking(AdversarialMasking(0.75, SIDE), (0.2, 0.9))
    images = images_of((8, 8), 3)
    counts = {strategy(images).num_visible for _ in range(20)}
    assert len(counts) > 5
    patch_mask = strategy(images)
    strategy.total_loss(torch.zeros(()), brightness(images).exp(), patch_mask).backward()
    assert strategy.masking.network.layers[0].weight.grad.abs().sum() > 0
    assert strategy.masking.threshold.mask_ratio == 0.75


@pytest.mark.parametrize("kind", ["random", "learned", "free counts"])
def test_shuffled_masks_are_those_of_other_images(kind):
    inner = {
        "random": RandomMasking(0.5, SIDE),
        "learned": AdversarialMasking(0.5, SIDE),
        "free counts": AdversarialMasking(
            0.5, SIDE, threshold=dict(type="mean"), standardise=False
        ),
    }[kind]
    images = images_of((6, 6), 7)
    images[:, :, :8] *= torch.linspace(0.1, 4, 7).view(-1, 1, 1, 1)
    own = inner(images, generator(3))
    seen = set()
    for seed in range(30):
        state = generator(3)
        inner_mask = ShuffledMasking(inner)
        patch_mask = inner_mask(images, state) if seed == 0 else None
        if patch_mask is None:
            state.manual_seed(3)
            patch_mask = ShuffledMasking(Replay(own))(images, generator(seed))
        source = [
            next(i for i in range(7) if torch.equal(own.mask[i], row)) for row in patch_mask.mask
        ]
        assert sorted(source) == list(range(7))
        assert all(i != image for image, i in enumerate(source))
        seen.add(tuple(source))
        # Every row goes along: the count, the order, the logits with their gradient.
        assert torch.equal(patch_mask.ids_shuffle, own.ids_shuffle[source])
        if kind != "random":
            assert torch.equal(patch_mask.logits, own.logits[source])
        if kind == "free counts":
            assert torch.equal(patch_mask.visible_counts, own.visible_counts[source])
    assert len(seen) > 20


class Replay(RandomMasking):
    """Gives one mask again."""

    def __init__(self, patch_mask):
        super().__init__(0.5, SIDE)
        self.patch_mask = patch_mask

    def forward(self, images, generator=None):
        return self.patch_mask


def test_the_gradient_of_a_shuffled_mask_reaches_the_scores_of_its_source():
    estimator = dict(type="straight_through", noise=0.0)
    inner = AdversarialMasking(0.5, SIDE, estimator=estimator)
    images = images_of((6, 6), 5)
    patch_mask = ShuffledMasking(inner)(images, generator(0))
    own = inner(images, generator(0))
    source = [next(i for i in range(5) if torch.equal(own.mask[i], r)) for r in patch_mask.mask]
    error = torch.rand(5, 36)
    grads = []
    for mask, rows in ((patch_mask, error), (own, torch.empty_like(error))):
        if mask is own:
            rows[source] = error  # the error that each source's own mask met
        inner.zero_grad()
        inner.total_loss(torch.zeros(()), rows, mask).backward()
        grads.append([p.grad.clone() for p in inner.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_schedules_reach_the_strategy_within():
    inner = AdversarialMasking(0.5, SIDE, strength=dict(start=-1.0, end=1.0))
    RandomRatioMasking(inner).set_progress(0.75)
    assert inner.strength == 0.5


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
            r"expected \(least, largest\)",
        ),
        (
            # At the first batch, though 0.95 itself is next to never drawn.
            lambda: RandomRatioMasking(RandomMasking(0.5, SIDE), (0.1, 0.95))(
                images_of((4, 4), 2), generator(0)
            ),
            ValueError,
            "mask_ratio=0.95 of 16 patches leaves none visible",
        ),
        (
            lambda: RandomRatioMasking(ShuffledMasking(RandomMasking())),
            TypeError,
            "a strategy with a mask_ratio, got ShuffledMasking",
        ),
        (
            lambda: ShuffledMasking(RandomMasking(0.5, SIDE))(images_of((4, 4), 1)),
            ValueError,
            "at least two images, got 1",
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


def test_patch_masks_are_not_changed_by_what_wraps_them():
    own = RandomMasking(0.5, SIDE)(images_of((4, 4), 3))
    before = own.mask.clone()
    assert isinstance(ShuffledMasking(Replay(own))(images_of((4, 4), 3)), PatchMask)
    assert torch.equal(own.mask, before)
