"""Laws of PatchMask."""

from __future__ import annotations

from dataclasses import is_dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import PatchMask
from amn_masking.mask import invert_permutation
from amn_masking.prediction import leave_out, predict_some
from tests.helpers import draws
from tests.helpers.draws import ragged
from tests.helpers.selections import learn


@given(draws.masks(free_counts=True))
def test_ids_partition_the_patches_and_follow_the_mask(case):
    mask, grid = case
    patch_mask = PatchMask.from_mask(mask, grid)
    length = mask.shape[1]
    for row in range(len(mask)):
        visible = (mask[row] == 0).nonzero().flatten().tolist()
        kept = patch_mask.ids_keep[row]
        if patch_mask.padding is not None:
            kept = kept[~patch_mask.padding[row]]
        assert sorted(kept.tolist()) == visible
        assert sorted(patch_mask.ids_shuffle[row].tolist()) == list(range(length))
    assert torch.equal(patch_mask.mask, mask)
    assert not patch_mask.ids_shuffle.dtype.is_floating_point


@given(draws.masks())
def test_equal_counts_split_into_keep_and_mask(case):
    mask, grid = case
    patch_mask = PatchMask.from_mask(mask, grid)
    assert patch_mask.visible_counts is None
    assert patch_mask.padding is None
    both = torch.cat([patch_mask.ids_keep, patch_mask.ids_mask], 1)
    assert torch.equal(both.sort(1).values, torch.arange(mask.shape[1]).expand_as(mask))
    assert torch.equal(mask.gather(1, patch_mask.ids_mask), torch.ones(patch_mask.ids_mask.shape))


@given(draws.masks(free_counts=True))
def test_ids_restore_inverts_ids_shuffle(case):
    patch_mask = PatchMask.from_mask(*case)
    identity = torch.arange(patch_mask.num_patches).expand_as(patch_mask.ids_shuffle)
    assert torch.equal(patch_mask.ids_shuffle.gather(1, patch_mask.ids_restore), identity)
    assert torch.equal(patch_mask.ids_restore.gather(1, patch_mask.ids_shuffle), identity)
    assert torch.equal(invert_permutation(patch_mask.ids_restore), patch_mask.ids_shuffle)


@given(draws.masks(free_counts=True))
def test_gather_then_scatter_is_the_identity_on_visible_patches(case):
    mask, grid = case
    patch_mask = PatchMask.from_mask(mask, grid)
    tokens = torch.randn(*mask.shape, 3)
    token = torch.tensor([7.0, 8.0, 9.0])
    back = patch_mask.scatter(patch_mask.gather_visible(tokens), token)
    assert torch.equal(back, torch.where(mask[:, :, None].bool(), token, tokens))


@given(draws.masks(free_counts=True))
def test_gathered_tokens_are_the_reference_s_and_padding_is_zero(case):
    mask, grid = case
    patch_mask = PatchMask.from_mask(mask, grid)
    tokens = torch.randn(*mask.shape, 2)
    visible = patch_mask.gather_visible(tokens)
    assert visible.shape[1] == int((1 - mask).sum(1).max())
    for row in range(len(mask)):
        expected = tokens[row][mask[row] == 0]
        assert torch.equal(visible[row, : len(expected)], expected)
        assert not visible[row, len(expected) :].any()


@given(draws.masks())
def test_permuting_the_batch_permutes_the_mask(case):
    mask, grid = case
    order = torch.randperm(len(mask))
    straight, permuted = PatchMask.from_mask(mask, grid), PatchMask.from_mask(mask[order], grid)
    assert torch.equal(permuted.ids_keep, straight.ids_keep[order])
    assert torch.equal(permuted.ids_restore, straight.ids_restore[order])


def test_apply_fills_masked_pixels_only():
    mask = torch.tensor([[[1, 0], [0, 1], [0, 0]]])
    patch_mask = PatchMask.from_mask(mask)
    assert patch_mask.grid == (3, 2)
    images = torch.arange(2 * 6 * 4, dtype=torch.float32).reshape(1, 2, 6, 4)
    shown = patch_mask.apply(images, fill=-1.0)
    for y in range(6):
        for x in range(4):
            hidden = bool(mask[0, y // 2, x // 2])
            expected = torch.full((2,), -1.0) if hidden else images[0, :, y, x]
            assert torch.equal(shown[0, :, y, x], expected)


def test_gate_is_one_in_value_and_reaches_the_surrogate():
    mask = torch.tensor([[1.0, 0, 0, 1]])
    soft = torch.zeros(1, 4, requires_grad=True)
    surrogate = mask + (soft - soft.detach())
    made = PatchMask.from_mask(mask, (2, 2))
    patch_mask = learn(made, surrogate=surrogate, gate=True)
    assert patch_mask.gate
    assert not made.gate
    assert not learn(made, surrogate=surrogate).gate
    tokens = torch.randn(1, 4, 3)
    plain = made.gather_visible(tokens)
    gated = patch_mask.gather_visible(tokens)
    assert torch.equal(gated, plain)
    gated.sum().backward()
    assert torch.allclose(soft.grad, -tokens.sum(2) * (1 - mask))


def test_detach_drops_every_gradient():
    made = PatchMask.from_mask(torch.tensor([[1.0, 0]]), (1, 2))
    logits = torch.zeros(1, 2, requires_grad=True) * 2
    patch_mask = learn(made, logits, made.mask + logits, regulariser=logits.sum(1))
    learned = patch_mask.detach().learned
    assert not learned.surrogate.requires_grad
    assert not learned.logits.requires_grad
    assert not learned.regulariser.requires_grad
    assert torch.equal(learned.surrogate, patch_mask.mask)
    assert made.detach().learned is None
    # It says itself that nothing is to be learned from it: no loss refuses it.
    error = torch.ones(1, 2, requires_grad=True)
    assert not learned.objective(error).requires_grad
    assert patch_mask.learned.logits.requires_grad


@pytest.mark.parametrize(
    ("mask", "grid", "message"),
    [
        (torch.ones(3), None, r"\(B, L\) or \(B, h, w\)"),
        (torch.tensor([[1.0, 0, 0]]), None, "does not fill a grid"),
        (torch.tensor([[1.0, 0, 0]]), (2, 2), "does not fill a grid of 2 x 2"),
        (torch.tensor([[1.0, 0]]), (1, 1, 1, 2), "does not fill a grid of 1 x 1 x 1 x 2"),
        (torch.tensor([[0.5, 0]]), (1, 2), r"of 0 \(visible\) and 1 \(masked\)"),
        (torch.tensor([[1.0, 0], [1, 1]]), (1, 2), "at least one visible patch"),
    ],
)
def test_from_mask_refuses(mask, grid, message):
    with pytest.raises(ValueError, match=message):
        PatchMask.from_mask(mask, grid)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
@pytest.mark.parametrize("grid", [(2, 3), (2, 1, 3)])
def test_from_mask_takes_a_mask_in_its_grid_and_of_any_type(grid, dtype):
    mask = torch.tensor([[1, 0, 0, 1, 1, 0]])
    for one in (mask.to(dtype), mask.to(dtype).reshape(1, *grid)):
        patch_mask = PatchMask.from_mask(one, grid)
        assert patch_mask.grid == PatchMask.from_mask(one.reshape(1, *grid)).grid == grid
        assert torch.equal(patch_mask.mask, mask.to(torch.float32))


LENGTHS = {
    "a class token left on": (lambda count: (1, count + 1, 3), r"prefix tokens.*tokens\[:, 1:\]"),
    "four registers too": (lambda count: (1, count + 5, 3), r"tokens\[:, 5:\]"),
    "too few": (lambda count: (1, count - 1, 3), "patch_size has to be the encoder's"),
    "another batch": (lambda count: (2, count, 3), "got"),
    "no batch": (lambda count: (count, 3), "got"),
    "images": (lambda count: (1, count, 3, 3), "got"),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_tokens_of_another_number_are_refused_with_the_likely_reason(kind):
    """With one token too many scatter would give the right shape and the wrong contents."""
    patch_mask = PatchMask.from_mask(torch.tensor([[1.0, 0, 0, 0]]))
    shape, reason = LENGTHS[kind]
    with pytest.raises(ValueError, match=rf"\(B, L, D\) = \(1, 4, D\) for a 2 x 2 grid.*{reason}"):
        patch_mask.gather_visible(torch.zeros(shape(4)))
    with pytest.raises(ValueError, match=rf"\(B, N, D\) = \(1, 3, D\).*3 visible.*{reason}"):
        patch_mask.scatter(torch.zeros(shape(3)), torch.zeros(3))
    with pytest.raises(ValueError, match=rf"\(B, L, D\) = \(1, 4, D\).*{reason}"):
        patch_mask.gather_decoded(torch.zeros(shape(4)))
    two = predict_some(PatchMask.from_mask(torch.tensor([[1.0, 1, 0, 0]])), 1)
    with pytest.raises(ValueError, match=rf"\(B, N \+ P, D\) = \(1, 3, D\).*{reason}"):
        two.scatter_decoded(torch.zeros(shape(3)))


@pytest.mark.parametrize("give", [lambda m: m.numpy(), lambda m: m.tolist()])
@pytest.mark.parametrize("take", [PatchMask.from_mask, lambda m: PatchMask.from_pixels(m, 1)])
def test_what_is_no_tensor_is_refused_by_name(give, take):
    with pytest.raises(
        TypeError, match=r"mask expected a torch.Tensor, got (ndarray|list).*as_tensor"
    ):
        take(give(torch.tensor([[[1.0, 0], [0, 0]]])))


@given(draws.masks(free_counts=True))
def test_from_shuffle_keeps_the_first_patches_of_each_image(case):
    mask, grid = case
    counts = (1 - mask).sum(1).long()
    shuffle, valid = mask.argsort(1), mask == 0
    patch_mask = PatchMask.from_shuffle(shuffle, int(counts.max()), grid, counts, valid)
    assert torch.equal(patch_mask.mask, mask)
    assert torch.equal(patch_mask.visible_counts, counts)
    assert patch_mask.valid is valid


def test_unless_told_otherwise_the_predicted_and_the_left_out_are_drawn():
    hidden = PatchMask.from_mask(torch.ones(1, 64).tril(40))
    chosen = PatchMask.from_mask(torch.ones(1, 64).tril(4))
    for part in (lambda: predict_some(hidden, 20), lambda: leave_out(chosen, 20)):
        assert not torch.equal(part().ids_shuffle, part().ids_shuffle)


@given(draws.masks(), st.floats(0, 1), draws.seeds)
def test_what_the_decoder_gets_goes_back_to_its_place_and_the_rest_is_zero(case, share, seed):
    patch_mask = PatchMask.from_mask(*case)
    count = max(1, round(share * (patch_mask.num_patches - patch_mask.num_visible)))
    patch_mask = predict_some(patch_mask, count, torch.Generator().manual_seed(seed))
    tokens = torch.randn(len(patch_mask.mask), patch_mask.num_patches, 3)
    decoded = patch_mask.gather_decoded(tokens)
    assert decoded.shape[1] == patch_mask.num_visible + count
    back = patch_mask.scatter_decoded(decoded)
    for row, (mask, predicted) in enumerate(
        zip(patch_mask.mask, patch_mask.predicted, strict=True)
    ):
        assert predicted.sum() == count
        for patch in range(patch_mask.num_patches):
            left_out = bool(mask[patch]) and not bool(predicted[patch])
            expected = torch.zeros(3) if left_out else tokens[row, patch]
            assert torch.equal(back[row, patch], expected)
    if patch_mask.num_left_out == 0:
        assert decoded is tokens
        assert patch_mask.predicted is patch_mask.mask
    else:  # the visible ones first, as the encoder gives them
        visible = patch_mask.gather_visible(tokens)
        assert torch.equal(decoded[:, : patch_mask.num_visible], visible)


@given(draws.masks(free_counts=True), st.tuples(*[st.integers(1, 4)] * 3))
def test_from_pixels_is_the_inverse_of_pixel_mask(case, size):
    mask, grid = case
    size = size[: len(grid)]
    patch_mask = PatchMask.from_mask(mask, grid)
    pixels = patch_mask.pixel_mask(*(parts * side for parts, side in zip(grid, size, strict=True)))
    for given_ in (pixels, pixels[:, 0], pixels.bool()):
        again = PatchMask.from_pixels(given_, size)
        assert torch.equal(again.mask, mask)
        assert again.grid == grid
        assert torch.equal(again.ids_restore, patch_mask.ids_restore)
    if len(grid) == 2 and size[0] == size[1]:
        assert torch.equal(PatchMask.from_pixels(pixels, size[0]).mask, mask)


def test_pixels_that_are_no_mask_of_patches_are_refused():
    pixels = torch.zeros(1, 4, 6)
    pixels[:, :2, :2] = 1
    pixels[:, 2, 2] = 1
    with pytest.raises(ValueError, match=r"masked in part.*more than half of their pixels"):
        PatchMask.from_pixels(pixels, 2)
    with pytest.raises(ValueError, match="4 x 6 pixels does not split into patches of 4 x 4"):
        PatchMask.from_pixels(pixels, 4)
    with pytest.raises(ValueError, match=r"\(B, H, W\) or \(B, 1, H, W\), got \(1, 3, 4, 6\)"):
        PatchMask.from_pixels(torch.zeros(1, 3, 4, 6), 2)


def test_a_grid_other_than_the_images_is_refused_a_transposed_one_too():
    patch_mask = PatchMask.from_mask(torch.eye(6)[:2], (2, 3))
    patch_mask.check_grid(torch.zeros(2, 3, 8, 12), (4, 4), "the encoder")
    for batch, height, width in ((2, 12, 8), (3, 8, 12), (2, 4, 24)):
        images = torch.zeros(batch, 3, height, width)
        with pytest.raises(ValueError, match=r"the encoder expected a mask of .*got \(2, 2, 3\)"):
            patch_mask.check_grid(images, (4, 4), "the encoder")


def test_a_host_of_another_grid_than_the_images_is_told_their_size():
    patch_mask = PatchMask.from_mask(torch.eye(6)[:2], (2, 3))
    images = torch.zeros(2, 3, 8, 12)
    patch_mask.check_grid(images, (4, 4), "the encoder", own_grid=(2, 3))
    with pytest.raises(ValueError, match=r"2 x 3 patches.*built for 3 x 3; resize them to 12 x 12"):
        patch_mask.check_grid(images, (4, 4), "the encoder", own_grid=(3, 3))


def test_masks_of_some_images_are_theirs_and_the_reward_s_scale_stays():
    mask = ragged(5, 12)
    made = PatchMask.from_mask(mask, (3, 4))
    valid = torch.rand(5, 12) > 0.5
    made = replace(made, valid=valid)
    logits, scale = torch.randn(5, 12), torch.rand(5, 12)
    patch_mask = learn(
        made,
        logits,
        drawn_at_random=mask.bool(),
        reward_scale=scale,
        regulariser=torch.arange(5.0),
    )
    images = torch.tensor([3, 0, 3])
    taken = patch_mask.take(images)
    assert torch.equal(taken.mask, mask[images])
    assert torch.equal(taken.ids_shuffle, made.ids_shuffle[images])
    assert torch.equal(taken.ids_restore, made.ids_restore[images])
    assert torch.equal(taken.visible_counts, made.visible_counts[images])
    assert torch.equal(taken.valid, valid[images])
    assert (taken.num_visible, taken.grid) == (made.num_visible, made.grid)
    learned = taken.learned
    assert torch.equal(learned.chosen.mask, mask[images])
    for name in ("logits", "surrogate", "patch_scores", "score_map", "threshold"):
        assert torch.equal(getattr(learned, name), getattr(patch_mask.learned, name)[images]), name
    assert torch.equal(learned.drawn_at_random, mask.bool()[images])
    assert torch.equal(learned.regulariser, images.float())
    assert torch.equal(learned.reward_scale, scale)  # of the image, not of the mask
    assert learned.estimate is patch_mask.learned.estimate


def test_a_mask_moves_to_another_device_as_a_whole():
    made = replace(PatchMask.from_mask(ragged(3, 12), (3, 4)), valid=torch.ones(3, 12).bool())
    some = torch.rand(3, 12)
    patch_mask = learn(made, drawn_at_random=some > 2, reward_scale=some, regulariser=some[:, 0])
    moved = patch_mask.to("meta")

    def tensors(value):
        parts = vars(value).values()
        return [t for part in parts for t in (tensors(part) if is_dataclass(part) else [part])]

    before, after = (
        [t for t in tensors(value) if isinstance(t, torch.Tensor)] for value in (patch_mask, moved)
    )
    assert len(before) == len(after) == 5 + 5 + 8
    assert all(t.device.type == "meta" for t in after)
    assert all(t.device.type == "cpu" for t in before)
    assert patch_mask.to("cpu").mask.device.type == "cpu"


def test_ids_mask_of_unequal_counts_is_refused():
    patch_mask = PatchMask.from_mask(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]]))
    with pytest.raises(ValueError, match="mask different numbers"):
        _ = patch_mask.ids_mask


def test_a_square_grid_is_assumed_and_bools_are_taken():
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 4:] = True
    patch_mask = PatchMask.from_mask(mask)
    assert patch_mask.grid == (3, 3)
    assert patch_mask.mask.dtype == torch.float32
    assert patch_mask.num_visible == 4


def test_tokens_keep_their_dtype():
    mask = torch.tensor([[1.0, 0, 0, 1], [1, 1, 0, 1]])
    patch_mask = learn(PatchMask.from_mask(mask), gate=True)
    visible = patch_mask.gather_visible(torch.randn(2, 4, 3, dtype=torch.bfloat16))
    assert visible.dtype == torch.bfloat16
    restored = patch_mask.scatter(visible, torch.zeros(3))
    assert restored.dtype == torch.bfloat16
    assert restored.shape == (2, 4, 3)


def test_apply_defaults_to_black_and_keeps_the_dtype():
    patch_mask = PatchMask.from_mask(torch.tensor([[1.0, 0, 0, 1]]))
    images = torch.ones(1, 3, 4, 6, dtype=torch.float64)
    shown = patch_mask.apply(images)
    assert shown.dtype == torch.float64
    assert torch.equal(shown, (1 - patch_mask.pixel_mask(4, 6)).double().expand(1, 3, 4, 6))
    half = patch_mask.apply(images.bfloat16(), torch.zeros(1))
    assert half.dtype == torch.bfloat16
    whole = torch.full((1, 3, 4, 6), 7.0)  # another dtype than the images'
    assert torch.equal(patch_mask.apply(images, whole)[0, 0, 0, 0], torch.tensor(7.0).double())


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (5, 5)])
def test_an_image_that_does_not_split_into_the_grid_is_refused(size):
    patch_mask = PatchMask.from_mask(torch.tensor([[1.0, 0, 0, 1]]))
    with pytest.raises(ValueError, match=f"image of {size[0]} x {size[1]} pixels does not split"):
        patch_mask.pixel_mask(*size)


def test_a_grid_beside_a_mask_that_has_its_own_is_followed_or_refused():
    mask = torch.eye(4)[None]
    assert PatchMask.from_mask(mask, (4, 4)).grid == (4, 4)
    with pytest.raises(ValueError, match="does not fill a grid of 2 x 8"):
        PatchMask.from_mask(mask, (2, 8))


def test_patches_of_a_signal_without_data_are_not_taken_for_the_signal():
    valid = torch.tensor([[True, True, True, False]])
    patch_mask = replace(PatchMask.from_mask(torch.tensor([[1, 0, 0, 0]]), (4,)), valid=valid)
    filled = patch_mask.fill_invalid(torch.ones(1, 2, 40))
    assert torch.equal(filled[0, 0], (torch.arange(40) < 30).float())
    with pytest.raises(ValueError, match="cannot be told apart"):
        patch_mask.fill_invalid(torch.ones(1, 4, 20))
    assert replace(patch_mask, valid=None).fill_invalid(torch.ones(1, 4, 20)).all()


def test_of_what_is_masked_the_first_may_be_predicted():
    order = torch.stack([torch.randperm(12) for _ in range(3)])
    patch_mask = PatchMask.from_shuffle(order, 4, (3, 4), num_predicted=5)
    assert (patch_mask.num_predicted, patch_mask.num_left_out) == (5, 3)
    expected = torch.zeros(3, 12).scatter(1, order[:, 4:9], 1.0)
    assert torch.equal(patch_mask.predicted, expected)
