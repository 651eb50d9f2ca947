"""Tubes: frames are masked alike, and the error of a tube is the mean over its slots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, PatchMask, RandomMasking
from amn_masking.estimators import ESTIMATORS
from amn_masking.meters import adversarial_gain, at_random
from amn_masking.patches import patchify
from amn_masking.prediction import predict_some
from amn_masking.strategies import BlockMasking, HardPatchMasking
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.selections import learn

FRAMES, SLOTS = 8, 4
TUBE = (FRAMES, 4, 4)  # a patch as deep as the clip; the encoder's have two frames
STRATEGIES = {
    "random": lambda: RandomMasking(0.5, TUBE),
    "hard patches": lambda: HardPatchMasking(0.5, TUBE),
    "left out": lambda: AdversarialMasking(0.75, TUBE, prediction_ratio=0.25),
    "free counts": lambda: AdversarialMasking(None, TUBE, threshold=dict(type="mean")),
    "every option": lambda: AdversarialMasking(
        0.5, TUBE, random_share=0.3, reward="variance_normalised", entropy_weight=0.1, gate=True
    ),
    **{
        name: lambda name=name: AdversarialMasking(0.5, TUBE, estimator=dict(type=name))
        for name in ESTIMATORS
    },
}
LEARNED = [name for name in STRATEGIES if name != "random"]


def clips(batch=3):
    return torch.randn(batch, 3, FRAMES, 12, 16, generator=generator(0))


@given(draws.masks(free_counts=True, grids=draws.grids_of_images), st.integers(1, 4), st.booleans())
def test_every_slot_is_masked_alike(case, slots, with_axis):
    mask, grid = case
    one = PatchMask.from_mask(mask, (1, *grid) if with_axis else grid)
    valid = (mask == 0) | (torch.rand(mask.shape) > 0.5)
    one.valid = valid
    patch_mask = one.tubes(slots)
    assert patch_mask.grid == (slots, *grid)
    for values, each in ((patch_mask.mask, mask), (patch_mask.valid, valid)):
        assert torch.equal(
            values.unflatten(1, (slots, -1)), each[:, None].expand(-1, slots, *each.shape[1:])
        )
    # The visible come first, both in the order of the grid.
    for row in range(len(mask)):
        hidden = patch_mask.mask[row]
        order = [i for i in range(len(hidden)) if not hidden[i]]
        assert patch_mask.ids_shuffle[row].tolist() == order + hidden.nonzero().flatten().tolist()
        if patch_mask.visible_counts is not None:
            assert patch_mask.visible_counts[row] == len(order)
    assert patch_mask.num_visible == slots * one.num_visible
    identity = torch.arange(patch_mask.num_patches).expand_as(patch_mask.ids_shuffle)
    assert torch.equal(patch_mask.ids_restore.gather(1, patch_mask.ids_shuffle), identity)


@given(draws.masks(grids=draws.grids_of_images), st.integers(1, 4), st.floats(0, 1))
def test_what_is_left_out_is_left_out_of_every_slot(case, slots, share):
    one = PatchMask.from_mask(*case)
    one = predict_some(one, max(1, round(share * (one.num_patches - one.num_visible))))
    patch_mask = one.tubes(slots)
    assert torch.equal(patch_mask.predicted, one.predicted.repeat(1, slots))
    assert patch_mask.num_predicted == slots * one.num_predicted
    assert patch_mask.num_left_out == slots * one.num_left_out
    tokens = torch.randn(len(one.mask), patch_mask.num_patches, 2)
    back = patch_mask.scatter_decoded(patch_mask.gather_decoded(tokens))
    shown = (patch_mask.mask == 0) | (patch_mask.predicted == 1)
    assert torch.equal(back, tokens.where(shown[:, :, None], 0.0))


def test_a_mask_of_tubes_is_of_the_clip():
    clip = clips()
    patch_mask = RandomMasking(0.5, TUBE)(clip).tubes(SLOTS)
    patch_mask.check_grid(clip, (2, 4, 4), "the encoder")
    shown = patch_mask.apply(clip)
    for frame in range(1, FRAMES):
        assert torch.equal(shown[:, :, 0] == 0, shown[:, :, frame] == 0)
    assert (shown == 0).float().mean() == 0.5


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_surrogate_is_the_mask_bit_for_bit_and_the_rest_is_each_slot_s(name):
    one = STRATEGIES[name]()(clips())
    patch_mask = one.tubes(SLOTS)
    if one.learned is None:
        assert patch_mask.learned is None
        return
    learned = patch_mask.learned
    assert torch.equal(learned.surrogate, learned.chosen.mask)
    assert torch.equal(learned.chosen.mask, patch_mask.predicted)
    names = ("logits", "patch_scores", "chances", "drawn_at_random", "reward_scale")
    for part in names:
        value, each = getattr(learned, part), getattr(one.learned, part)
        assert (value is None) == (each is None)
        assert value is None or torch.equal(value, each.repeat(1, SLOTS)), part
    assert torch.equal(learned.threshold, one.learned.threshold)
    assert torch.equal(learned.score_map, one.learned.score_map)


@pytest.mark.parametrize("name", LEARNED)
def test_the_loss_trains_the_network_as_the_mean_over_the_slots_does(name):
    """Bit for bit the objective of one slot's mask; the same gradients, but for rounding."""
    masking, error = STRATEGIES[name](), torch.rand(3, SLOTS * 12, generator=generator(1))
    mean = error.unflatten(1, (SLOTS, -1)).mean(1)
    results = []
    for tubes in (True, False):
        patch_mask = masking(clips(), generator(2))
        given_ = (error if tubes else mean).clone().requires_grad_()
        patch_mask = patch_mask.tubes(SLOTS) if tubes else patch_mask
        masking.zero_grad()
        objective = patch_mask.learned.objective(given_)
        alone = torch.autograd.grad(objective, list(masking.parameters()), retain_graph=True)
        loss = masking.total_loss(given_.mean(), given_, patch_mask)
        loss.backward()
        results.append((loss.detach(), alone, [p.grad for p in masking.parameters()], given_.grad))
    (loss, alone, gradients, of_error), (loss_1, alone_1, gradients_1, of_mean) = results
    torch.testing.assert_close(loss, loss_1)
    for one, other in zip(alone, alone_1, strict=True):
        assert torch.equal(one, other)
        assert one.abs().max() > 0
    for one, other in zip(gradients, gradients_1, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(of_error.unflatten(1, (SLOTS, -1)).sum(1), of_mean)


def test_what_stands_in_visible_tubes_does_not_matter_not_a_number_included():
    patch_mask = AdversarialMasking(0.5, TUBE)(clips()).tubes(SLOTS)
    error, logits = torch.rand(3, SLOTS * 12), patch_mask.learned.one_slot.logits
    gradients = [
        torch.autograd.grad(patch_mask.learned.objective(e), logits, retain_graph=True)[0]
        for e in (error, error.where(patch_mask.mask > 0, float("nan")))
    ]
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_the_gate_sends_the_gradient_of_every_slot_to_the_tube():
    patch_mask = learn(PatchMask.from_mask(torch.tensor([[1.0, 0, 0, 1]])), gate=True)
    soft = torch.zeros(1, 4, requires_grad=True)
    patch_mask.learned.surrogate = patch_mask.mask + (soft - soft.detach())
    tokens = torch.randn(1, 12, 2)
    patch_mask.tubes(3).gather_visible(tokens).sum().backward()
    expected = -tokens.sum(2).reshape(1, 3, 4).sum(1) * (1 - patch_mask.mask)
    torch.testing.assert_close(soft.grad, expected)


@pytest.mark.parametrize("pixels", [True, False])
def test_the_combined_loss_takes_clips_and_their_patches(pixels):
    clip = clips()
    patch_mask = AdversarialMasking(0.5, TUBE)(clip).tubes(SLOTS)
    pred = (0.5 * clip).requires_grad_()
    pair = (pred, clip) if pixels else (patchify(pred, (2, 4, 4)), patchify(clip, (2, 4, 4)))
    criterion = CombinedAdversarialLoss(channel=3 if pixels else None)
    criterion(*pair, patch_mask).backward()
    hidden = patch_mask.pixel_mask(FRAMES, 12, 16).bool().expand_as(clip)
    assert (pred.grad[hidden] != 0).all()
    assert not pred.grad[~hidden].any()
    expected = 0.25 * clip[hidden].square().mean()
    torch.testing.assert_close(criterion.terms(*pair, patch_mask).reconstruction, expected)


def test_take_and_detach_go_through():
    masking = AdversarialMasking(0.5, TUBE)
    patch_mask = masking(clips()).tubes(SLOTS)
    order, error = torch.tensor([2, 0, 1]), torch.rand(3, SLOTS * 12)
    taken = patch_mask.take(order)
    for one, other in zip(
        torch.autograd.grad(
            taken.learned.objective(error[order]), masking.network.parameters(), retain_graph=True
        ),
        torch.autograd.grad(patch_mask.learned.objective(error), masking.network.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    of_one, detached = patch_mask.learned.one_slot.logits, patch_mask.detach().learned
    assert torch.equal(taken.learned.one_slot.logits, of_one[order])
    assert torch.equal(detached.one_slot.logits, of_one)
    assert not detached.objective(error.requires_grad_()).requires_grad


def test_a_step_counts_once_for_the_threshold():
    masking = AdversarialMasking(None, TUBE, threshold=dict(type="difficulty"), random_share=0.5)
    patch_mask = masking(clips()).tubes(SLOTS)
    error = torch.rand(3, SLOTS * 12)
    before = masking.threshold.errors.clone()
    patch_mask.learned.objective(error)
    once = masking.threshold.errors.clone()
    patch_mask.learned.objective(error)
    assert not torch.equal(before, once)
    assert torch.equal(once, masking.threshold.errors)


def test_the_mask_of_a_frame_is_taken_too():
    one = BlockMasking(0.5, 4, min_patches=2)(clips()[:, :, 0])
    patch_mask = one.tubes(SLOTS)
    assert patch_mask.grid == (SLOTS, 3, 4)
    assert torch.equal(patch_mask.mask, one.mask.repeat(1, SLOTS))
    learned = AdversarialMasking(0.5, 4)(clips()[:, :, 0])
    score_map = learned.tubes(SLOTS).learned.score_map
    assert torch.equal(score_map[:, :, 0], learned.learned.score_map)


@pytest.mark.parametrize(
    ("grid", "slots", "message"),
    [
        ((2, 2, 3), 4, r"of grid \(rows, columns\) or \(1, rows, columns\), got \(2, 2, 3\); give"),
        ((3, 4), 0, "a number of time slots, at least 1, got 0"),
        ((3, 4), 2.0, "a number of time slots, at least 1, got 2.0"),
    ],
)
def test_other_masks_and_numbers_of_slots_are_refused(grid, slots, message):
    patch_mask = PatchMask.from_mask((torch.arange(12) < 6)[None], grid)
    with pytest.raises(ValueError, match=message):
        patch_mask.tubes(slots)


def test_random_masks_in_the_place_of_tubes_are_tubes():
    """Else random tubes would look hard: what is visible in another slot is easily told."""
    clips = torch.randn(64, 3, 8, 16, 16)
    valid = torch.rand(64, 8, 16, 16) > -1
    valid[:, :, :4, :4] = False
    tubes = RandomMasking(0.5, (8, 4, 4))(clips, valid=valid).tubes(4)
    drawn = at_random(tubes).mask.unflatten(1, (4, 16))
    assert (drawn == drawn[:, :1]).all()
    assert (drawn[:, 0].sum(1) == 8).all()
    assert not drawn[:, :, 0].any()  # the patch without data

    def copying(mask):
        """Low where the same place is visible in some slot."""
        shown = (1 - mask.mask).unflatten(1, (4, 16)).amax(1).repeat(1, 4)
        return 1.0 - 0.9 * shown

    assert adversarial_gain(copying, tubes).item() == pytest.approx(1.0, abs=1e-6)


def test_a_signal_has_no_tubes():
    with pytest.raises(ValueError, match="places of a frame"):
        RandomMasking(0.5, (8,))(torch.randn(2, 1, 64)).tubes(4)
