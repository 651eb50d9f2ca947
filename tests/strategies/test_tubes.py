"""Tubes of another strategy's making, and the encoder's patches that they are of."""

from __future__ import annotations

import pytest
import torch

from amn_masking import AdversarialMasking, MaskingStrategy, PatchMask, RandomMasking
from amn_masking.counts import count_masked
from amn_masking.strategies import (
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    RandomRatioMasking,
    ShuffledMasking,
    TubeMasking,
)
from tests.helpers.draws import generator

FRAMES, SLOTS, PLACES = 8, 4, 30  # two frames a slot, 5 x 6 places
TUBE, OWN = (FRAMES, 4, 4), (2, 4, 4)
STRATEGIES = {
    "random": RandomMasking,
    "block": lambda ratio, patch, **more: BlockMasking(ratio, patch, 4, **more),
    "color noise": ColorNoiseMasking,
    "hard patches": HardPatchMasking,
    "adversarial": AdversarialMasking,
}
each_strategy = pytest.mark.parametrize("name", STRATEGIES)


def clips(batch=3, frames=FRAMES):
    return torch.randn(batch, 3, frames, 20, 24, generator=generator(0))


def tubes(name, ratio=0.5, slots=SLOTS, **more):
    torch.manual_seed(0)
    return TubeMasking(STRATEGIES[name](ratio, TUBE, **more), slots)


def slots_of(values):
    """``(B, L)`` over all slots to ``(B, SLOTS, PLACES)``."""
    return values.unflatten(1, (SLOTS, PLACES))


@each_strategy
def test_it_is_the_wrapped_strategy_s_mask_in_every_slot(name):
    strategy = tubes(name)
    patch_mask = strategy(clips(), generator(1))
    one = strategy.masking(clips(), generator(1))
    assert torch.equal(patch_mask.mask, one.mask.repeat(1, SLOTS))
    assert patch_mask.slots == SLOTS
    assert (patch_mask.mask.sum(1) == SLOTS * count_masked(PLACES, 0.5)).all()
    patch_mask.check_grid(clips(), strategy.patch_size, "the encoder", (SLOTS, 5, 6))


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_a_host_sees_the_encoder_s_patches(slots):
    strategy = tubes("adversarial", slots=slots)
    assert strategy.patch_size == (FRAMES // slots, 4, 4)
    assert strategy.grid(clips()) == strategy(clips()).grid == (slots, 5, 6)
    strategy.require("the host", (FRAMES // slots, 4, 4), "keeps one count", "is bool")
    message = rf"\(8, 4, 4\) in {slots} slots, but the host works on patches of \(3, 4, 4\) pix"
    with pytest.raises(ValueError, match=message):
        strategy.require("the host", (3, 4, 4))
    gated = TubeMasking(AdversarialMasking(0.5, TUBE, gate=True), slots)
    with pytest.raises(ValueError, match="the host is bool; leave out gate=True"):
        gated.require("the host", (FRAMES // slots, 4, 4), no_gate="is bool")
    assert f"patch_size={strategy.patch_size}" in repr(strategy)
    with pytest.raises(AttributeError):
        strategy.patch_size = TUBE


def test_blocks_are_rectangles_of_the_places():
    """One that fits: 12 of 30 places, within 3 x 4 or so, in all frames."""
    strategy = TubeMasking(BlockMasking(0.4, TUBE, min_patches=12, min_aspect=1.0), SLOTS)
    places = slots_of(strategy(clips(50), generator(0)).mask)[:, 0].reshape(50, 5, 6)
    for place in places:
        rows, columns = place.any(1).nonzero().flatten(), place.any(0).nonzero().flatten()
        assert (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) <= 16
    images = BlockMasking(0.4, 4, min_patches=12, min_aspect=1.0)(clips(50)[:, :, 0], generator(0))
    assert torch.equal(images.mask, places.flatten(1))


@pytest.mark.parametrize("pixels", [True, False], ids=["pixels", "patches"])
@each_strategy
def test_a_tube_with_a_slot_without_data_is_not_valid(name, pixels):
    """The slow way: a place is valid if it is so in each slot, or in each frame."""
    drawn = torch.rand(3, SLOTS, PLACES, generator=generator(2)) > 0.03
    places = torch.ones(3, PLACES, dtype=torch.bool)
    for slot in range(SLOTS):
        places &= drawn[:, slot]
    assert not places.all()
    given = drawn.flatten(1)
    if pixels:  # one pixel of one frame
        given = torch.ones(3, FRAMES, 20, 24, dtype=torch.bool)
        given[:, 1::2, 2::4, 3::4] = drawn.reshape(3, SLOTS, 5, 6)
    strategy = tubes(name)
    patch_mask = strategy(clips(), generator(3), given)
    assert torch.equal(patch_mask.valid, places.repeat(1, SLOTS))
    assert not patch_mask.mask[~patch_mask.valid].any()
    assert (patch_mask.mask.sum(1) == SLOTS * count_masked(PLACES, 0.5)).all()
    # What stands there does not matter, in the slots of the tube with data neither.
    hole = ~places.reshape(3, 1, 1, 5, 6).repeat_interleave(4, 3).repeat_interleave(4, 4)
    other = strategy(clips().masked_fill(hole, float("nan")), generator(3), given)
    assert torch.equal(other.ids_shuffle, patch_mask.ids_shuffle)


@each_strategy
def test_what_is_left_out_are_whole_tubes(name):
    strategy = tubes(name, 0.7, prediction_ratio=0.3)
    patch_mask = strategy(clips(), generator(4))
    for values, count in ((patch_mask.mask, 21), (patch_mask.predicted, 9)):
        values = slots_of(values)
        assert (values == values[:, :1]).all()
        assert (values.sum(2) == count).all()
    assert patch_mask.num_left_out == SLOTS * 12


def test_ratios_and_schedules_are_the_wrapped_strategy_s():
    strategy = tubes("adversarial", None)
    assert strategy.mask_ratio == strategy.masking.mask_ratio == 0.75
    strategy.default_ratio = 0.5
    assert slots_of(strategy(clips()).mask)[0, 0].sum() == 15
    strategy.mask_ratio = dict(type="linear", start=0.2, end=0.6)
    for progress, count in ((0.0, 6), (1.0, 18)):
        strategy.set_progress(progress)
        assert slots_of(strategy(clips()).mask)[0, 0].sum() == count
    # Counts are of places: 0.99 of 120 patches would leave one visible, of 30 places none.
    with pytest.raises(ValueError, match=r"mask_ratio=0.99 of 30 patches leaves none visible"):
        tubes("random", 0.99)(clips())
    ratios = RandomRatioMasking(tubes("random", None), (0.4, 0.6))
    assert 12 <= slots_of(ratios(clips()).mask)[0, 0].sum() <= 18
    with pytest.raises(ValueError, match=r"mask_ratio=0.98 of 30 patches leaves none visible"):
        RandomRatioMasking(tubes("random", None), (0.5, 0.98))(clips())


def test_it_trains_the_wrapped_strategy_s_network():
    strategy = tubes("adversarial")
    error = torch.rand(3, SLOTS * PLACES, requires_grad=True)
    gradients = []
    for masking in (strategy, lambda *args: strategy.masking(*args).tubes(SLOTS)):
        strategy.zero_grad()
        patch_mask = masking(clips(), generator(5))
        strategy.total_loss(error.mean(), error, patch_mask).backward()
        gradients.append([p.grad.clone() for p in strategy.parameters()])
    assert all(map(torch.equal, *gradients))
    assert all(gradient.any() for gradient in gradients[0])


def test_a_shuffle_around_it_gives_whole_tubes_of_another_clip():
    strategy = ShuffledMasking(tubes("adversarial").eval())
    mask = slots_of(strategy(clips()).mask)
    assert (mask == mask[:, :1]).all()
    own = slots_of(strategy.masking(clips()).mask)
    assert all(not torch.equal(mask[i], own[i]) for i in range(3))


class OwnTubes(MaskingStrategy):
    """One's own, which repeats its mask by itself."""

    takes_ratio = True
    chooses = False

    def forward(self, images, generator=None, valid=None):
        slots, *places = self.grid(images)
        noise = torch.rand(len(images), PLACES)
        ratio = self.chosen_ratio if self.chooses else self.mask_ratio
        hidden = noise.argsort(1).argsort(1) < count_masked(PLACES, ratio)
        patch_mask = PatchMask.from_mask(hidden, tuple(places)).tubes(slots)
        return self.leave_out(patch_mask, generator) if self.chooses else patch_mask


@pytest.mark.parametrize("chooses", [False, True])
@pytest.mark.parametrize("slots", [2, 4])
def test_a_prediction_ratio_does_not_break_one_s_own_tubes(chooses, slots):
    strategy = OwnTubes((FRAMES // slots, 4, 4), 0.6, prediction_ratio=0.3)
    strategy.chooses = chooses
    message = rf"left out in part; .*TubeMasking\(strategy, slots={slots}\)"
    with pytest.raises(ValueError, match=message):
        strategy(clips())


def test_tubes_within_that_predict_as_many_are_taken():
    """10 of 30 places are predicted; 38 of 120 patches would be."""

    class Around(OwnTubes):
        def forward(self, images, generator=None, valid=None):
            return tubes("random", 0.6, prediction_ratio=0.31)(images, generator, valid)

    assert SLOTS * count_masked(PLACES, 0.31) != count_masked(SLOTS * PLACES, 0.31)
    patch_mask = Around(OWN, 0.6, prediction_ratio=0.31)(clips())
    assert patch_mask.num_predicted == SLOTS * count_masked(PLACES, 0.31)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TubeMasking(RandomMasking(0.5, 4)), r"as deep as the clip.*got \(4, 4\); give"),
        (lambda: TubeMasking(BlockMasking(0.5, (4, 4))), r"that patch_size, BlockMasking too"),
        (lambda: TubeMasking(RandomMasking(0.5, (8,))), r"\(frames, height, width\), got \(8,\)"),
        (lambda: tubes("random", slots=3), r"divides the 8 frames .* got slots=3; it is the cli"),
        (lambda: tubes("random", slots=0), "got slots=0"),
        (lambda: tubes("random", slots=2.0), "got slots=2.0"),
        (lambda: tubes("random")(clips(frames=16)), r"\(B, C, 8, H, W\), got \(3, 3, 16, 20, 24\)"),
        (lambda: tubes("random")(clips().transpose(1, 2)), "put the frames behind the channels"),
        (lambda: tubes("random")(clips()[:, :, 0]), r"shape \(B, C, D, H, W\), got \(3, 3, 20, 24"),
        (lambda: BlockMasking(0.5, OWN)(clips()), r"4 x 5 x 6; give it patch_size=\(8, 4, 4\), an"),
        (lambda: BlockMasking(0.5, (8,)), r"two numbers or three, got \(8,\)"),
        (lambda: tubes("random").require("X", (4, 4)), r"leave TubeMasking out .*=\(4, 4\)$"),
        (
            lambda: tubes("random")(clips(), None, torch.ones(3, PLACES).bool()),
            r"\(3, 120\) patches or \(B, D, H, W\) = \(3, 8, 20, 24\) pixels, got \(3, 30\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_strategy_and_no_clip_are_refused():
    with pytest.raises(TypeError, match=r"expected masking= a MaskingStrategy.*got NoneType"):
        TubeMasking()
    with pytest.raises(TypeError, match=r"images expected a torch.Tensor, got list"):
        tubes("random")(clips().tolist())
