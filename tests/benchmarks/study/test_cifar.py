"""CIFAR-10 in the study, on a few dozen pictures that are made here."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.study import cifar, classifiers, corruptions, measures, steps, store, training
from benchmarks.study.__main__ import RESULTS
from benchmarks.study.cifar_arms import (
    CHOSEN,
    CPU,
    EQUAL_TIME,
    GPU,
    RATIOS,
    SHARE,
    SHORT_CPU,
    TUNED,
    arms,
    at_equal_flops,
    step_flops,
    timed,
)
from benchmarks.study.evidence import rows_of
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.pool import runs_of
from benchmarks.study.runs import run
from benchmarks.study.settings import ratio_of
from benchmarks.study.tables import by_cell
from benchmarks.study.training import InMemoryImages

TINY = replace(CPU, width=16, layers=1, decoder_width=16, epochs=2, batch=16, images=75, queries=30)
CLASSES = ("cat", "dog", "frog")
PER_CLASS = {"train": 25, "test": 10}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """75 training and 30 test pictures; a class has a colour, a picture a number in a corner."""
    rng = np.random.default_rng(0)
    for split, count in PER_CLASS.items():
        for label, name in enumerate(CLASSES):
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3), np.uint8)
                pixels[..., label] += 100
                pixels[0, 0] = number, label, split == "test"
                Image.fromarray(pixels).save(place / f"{number:04}.png")
    monkeypatch.setattr(cifar, "CACHE", tmp_path / "cache")
    monkeypatch.setenv(cifar.FOLDER, str(tmp_path / "pictures"))
    cifar.parts.cache_clear()
    cifar.chosen.cache_clear()
    yield tmp_path / "pictures"
    cifar.parts.cache_clear()
    cifar.chosen.cache_clear()


def marks(part: cifar.Pictures) -> set[tuple[int, ...]]:
    return {tuple(picture[0, 0].tolist()) for picture in part[0]}


def test_tuning_never_sees_the_test_set_and_holds_a_fifth_of_each_class_back(folder):
    known, held = cifar.parts("tune")
    assert not marks(known) & marks(held)
    assert {test for _, _, test in marks(known) | marks(held)} == {0}
    assert np.bincount(known[1]).tolist() == [20] * 3
    assert np.bincount(held[1]).tolist() == [5] * 3
    train, test = cifar.parts("report")
    assert marks(train) == marks(known) | marks(held)
    assert {mark[2] for mark in marks(test)} == {1}
    assert len(marks(test)) == 30


def test_pictures_are_those_of_the_files_and_decoded_once(folder, monkeypatch):
    pictures, labels = cifar.pictures(str(folder), "train")
    for picture, label in zip(pictures, labels, strict=True):
        number, klass, _ = picture[0, 0]
        assert klass == label
        with Image.open(folder / "train" / CLASSES[label] / f"{number:04}.png") as file:
            assert np.array_equal(np.asarray(file), picture)
    monkeypatch.setattr(cifar, "decode", None)
    assert np.array_equal(cifar.pictures(str(folder), "train")[0], pictures)
    Image.fromarray(pictures[0]).save(folder / "train" / "cat" / "more.png")
    with pytest.raises(TypeError):  # anew
        cifar.pictures(str(folder), "train")


def test_seeds_draw_their_pictures_in_equal_shares_of_the_classes(folder):
    recipe = replace(TINY, images=31, queries=9)
    one, again, other = (cifar.load(recipe, seed) for seed in (100, 100, 101))
    assert torch.equal(one.train.pixels, again.train.pixels)
    assert not torch.equal(one.train.pixels, other.train.pixels)
    assert sorted(np.bincount(one.train.labels)) == [10, 10, 11]
    assert np.bincount(one.test.labels).tolist() == [3, 3, 3]
    # Normalised by what is trained on.
    centre = one.train.centre()
    torch.testing.assert_close(centre.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(centre.std((0, 2, 3)), torch.ones(3))
    assert centre.shape == (31, 3, 32, 32)
    assert set(one.disturbed) == set(corruptions.CORRUPTIONS)
    assert not cifar.load(recipe, 0).disturbed


def test_a_folder_of_another_kind_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder with train/CLASS/FILE .*no train"):
        cifar.pictures(str(tmp_path), "train")
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(folder / "test" / "dog" / "wide.png")
    with pytest.raises(ValueError, match=r"32 x 32 pixels, got 40 x 32 in .*wide\.png"):
        cifar.pictures(str(folder), "test")


def test_training_crops_are_pieces_of_their_pictures_or_of_their_mirror_images(folder):
    images = cifar.load(TINY, 0).train
    ids = list(range(12))
    crops = InMemoryImages(images, 0).__getitems__(ids)["inputs"]
    mirrored = []
    for crop, index in zip(crops, ids, strict=True):
        found = [
            flip
            for flip in (False, True)
            for y in range(9)
            for x in range(9)
            for piece in [images.pixels[index, :, y : y + 32, x : x + 32]]
            if torch.equal(piece.flip(-1) if flip else piece, crop)
        ]
        assert len(found) == 1
        mirrored += found
    assert 0 < sum(mirrored) < len(ids)


@pytest.mark.parametrize("name", sorted(corruptions.CORRUPTIONS))
def test_a_disturbed_picture_is_still_that_picture(name):
    ramp = np.linspace(40, 200, 32)
    pictures = np.stack([np.add.outer(ramp, k * ramp[::-1]) / (1 + k) for k in (0, 0.5, 1, 2)])
    pictures = np.repeat(pictures[..., None], 3, -1).astype(np.uint8)
    before = pictures.copy()
    disturb = corruptions.CORRUPTIONS[name]
    found, again = (disturb(pictures, np.random.default_rng(1)) for _ in range(2))
    assert found.dtype == np.uint8
    assert np.array_equal(found, again)
    assert np.array_equal(pictures, before)
    assert (found != pictures).any((1, 2, 3)).all()
    for one, other in zip(found, pictures, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > (0.4 if name == "occluded" else 0.7)


def test_strengths_of_the_corruptions():
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    assert corruptions.noise(grey, rng).std() == pytest.approx(25.5, rel=0.01)
    stripes = np.tile(np.array([60, 180], np.uint8), 16)[None, :, None, None].repeat(32, 2)
    stripes = stripes.repeat(3, 3)
    assert np.ptp(corruptions.contrast(stripes, rng)) == round(0.3 * 120)
    dark = np.zeros((5, 32, 32, 3), np.uint8)
    dark[:, :2] = 128
    hidden = corruptions.occluded(dark, rng) != dark
    patches = hidden.any(3).reshape(5, 8, 4, 8, 4).any((2, 4))
    assert patches.sum((1, 2)).tolist() == [16] * 5


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(4, (count,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(count, 12, generator=generator)
    features[:, 3] = 7.0  # without any variance
    return features * torch.arange(1, 13), labels


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_the_probe_is_scikit_learns(c):
    features, labels = blobs(300, 0)
    queries, _ = blobs(200, 1)
    found = classifiers.fit_probe(features, labels, c, tol=1e-7)
    slow = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000, tol=1e-8))
    slow.fit(features.double().numpy(), labels.numpy())
    chances = classifiers.logits(found.weight, (queries.double() - found.mean) / found.scale)
    np.testing.assert_allclose(
        chances.softmax(1).numpy(), slow.predict_proba(queries.double().numpy()), atol=1e-4
    )
    assert found.score(features, labels) == pytest.approx(
        slow.score(features.double().numpy(), labels.numpy()), abs=0.004
    )


def test_few_labels_are_a_share_of_each_class():
    labels = np.repeat([0, 1, 2], [200, 100, 20])
    ids = classifiers.few(labels, 0.01, seed=3)
    assert np.bincount(labels[ids]).tolist() == [2, 1, 1]
    assert len(set(ids)) == len(ids)
    assert not np.array_equal(ids, classifiers.few(labels, 0.01, seed=4))


@pytest.mark.parametrize("recipe", [GPU, CPU], ids=lambda recipe: recipe.data)
def test_equal_flops_are_by_torchs_counter(recipe):
    pixels = torch.zeros(2, 3, 32, 32)

    def counted(setting):
        return measures.step_flops(training.build(setting, 0), pixels)["flops_step"]

    stock = counted(arms(recipe, 0.75)["random"])
    cells = {(name, ratio) for name in ("random", "adversarial") for ratio in RATIOS}
    cells |= {("hard patches", 0.75), ("shuffled", 0.5), ("block", 0.25), ("oracle", 0.25)}
    cells |= {("predicted, learned", 0.25), ("predicted, random", 0.25)}
    for name, ratio in cells:
        setting = arms(recipe, ratio)[name]
        assert step_flops(setting) == pytest.approx(counted(setting) / stock, rel=0.006), name
        epochs = at_equal_flops(replace(setting, recipe=replace(setting.recipe, epochs=1000)))
        assert epochs.recipe.epochs == round(1000 / step_flops(setting))


def test_ratios_are_those_that_the_tuning_seeds_like_best():
    probe = by_cell(rows_of(RESULTS, "cifar_tuning", "tune", "cifar"), "probe")
    means = {one: np.mean(list(values.values())) for one, values in probe.items()}
    assert {one[1] for one in means} == set(RATIOS)
    for name, ratio in CHOSEN.items():
        assert means[name, ratio] == max(means[name, other] for other in TUNED[name]), name
    colours = [
        max(means[one] for one in means if one[0] == f"color noise, {c}") for c in ["red", "green"]
    ]
    assert colours[1] > colours[0]
    recipes = by_cell(rows_of(RESULTS, "cifar_recipe", "tune", "cifar"), "probe")
    best = max(
        recipes,
        key=lambda one: np.mean(
            [probe for other in recipes if other[0] == one[0] for probe in recipes[other].values()]
        ),
    )
    assert best[0] == f"random, lr {GPU.lr:g}"


def test_epochs_at_equal_time_are_those_of_the_committed_measurement():
    with (RESULTS / "study_steps.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == CPU.data]
    settings = [store.said_now(row["settings"], "cifar_time") for row in rows]
    assert settings == [setting.to_json() for setting in timed()]
    nearest = {row["strategy"]: steps.epochs(row, "step_ratio") for row in rows}
    assert nearest.pop("random") == nearest.pop(SHARE) == SHORT_CPU.epochs
    assert nearest == {name: one for name, one in EQUAL_TIME.items() if name != SHARE}
    assert EQUAL_TIME[SHARE] == SHORT_CPU.epochs - 1


def test_every_row_is_of_a_setting_and_none_is_tuned_on_report_seeds():
    names = ("cifar", "cifar_tuning", "cifar_recipe", "cifar_lengths", "cifar_cpu", "cifar_time")
    for name in names:
        known = {setting.to_json() for setting in EXPERIMENTS[name]()}
        rows = store.read(RESULTS / f"study_{name}.csv")
        assert rows
        assert {row["settings"] for row in rows} <= known
        split = "tune" if name in ("cifar_tuning", "cifar_recipe") else "report"
        assert {row["split"] for row in rows} == {split}


def estimator_of(settings: str) -> str | None:
    """Of the adversary in a setting, however deep it is wrapped; None without an adversary."""
    masking = json.loads(settings)["masking"] or {}
    while "masking" in masking:
        masking = masking["masking"]
    return masking["estimator"]["type"] if masking.get("type") == "AdversarialMasking" else None


def test_every_adversary_names_its_estimator_in_settings_and_in_rows():
    """Else a key would mean another run whenever the default moves."""
    for name, make in EXPERIMENTS.items():
        settings = {setting.to_json() for setting in make()}
        settings |= {row["settings"] for row in store.read(RESULTS / f"study_{name}.csv")}
        kinds = {estimator_of(one) for one in settings} - {None}
        if name in store.ESTIMATOR_THEN:
            assert kinds == {store.ESTIMATOR_THEN[name]}, name


def test_what_tuning_seeds_run_with_another_estimator_has_no_key_of_the_report():
    keys = {
        name: {
            setting.to_json()
            for setting in EXPERIMENTS[name]()
            if estimator_of(setting.to_json()) is not None
        }
        for name in ("cifar_tuning", "cifar", "cifar_cpu", "cifar_time")
    }
    tuning = keys.pop("cifar_tuning")
    assert tuning
    assert all(keys.values())
    assert not tuning & set().union(*keys.values())


def test_a_machine_runs_its_own_recipe_unless_told_otherwise(monkeypatch):
    for gpu, data in ((False, "cifar_small"), (True, "cifar")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        runs = runs_of("cifar", [100, 101])
        assert {setting.recipe.data for setting, _ in runs} == {data}
        seeds = [seed for _, seed in runs]
        assert seeds == sorted(seeds)  # a seed's whole table before the next
        assert len(runs) == len(EXPERIMENTS["cifar"]())
    assert {s.recipe.data for s, _ in runs_of("cifar", [0], ["cifar_small"])} == {"cifar_small"}


@pytest.mark.parametrize("name", ["random", "predicted, learned"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_measures_everything_and_twice_the_same(folder, name, precision):
    recipe = replace(TINY, precision=precision)
    setting = arms(recipe, 0.25)[name]
    one, again = (run("cifar", setting, 100) for _ in range(2))
    assert {m: one[m] for m in store.METRICS} == {m: again[m] for m in store.METRICS}
    empty = {m for m in store.FEATURE_METRICS if not one[m]}
    assert empty == {"probe_swapped"}
    assert all(0 <= float(one[m]) <= 1 for m in store.FEATURE_METRICS if one[m])
    assert float(one["probe"]) > 0.8  # colours are easy
    assert '"pictures": "folder of pictures"' in one["software"]
    assert float(one["steps"]) == 8


def test_parameters_of_equal_options_share_a_group():
    setting = arms(TINY, 0.25)["adversarial"]
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(5)]
    rates = (0.1, 0.2, 0.1, 0.1, 0.2)
    groups = [dict(params=[p], lr=rate) for p, rate in zip(parameters, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups)
    training.merge_groups(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 2]
    assert ratio_of(setting.masking) == 0.25


def test_seen_and_predicted_reach_the_model():
    model = training.build(arms(TINY, 0.25)["predicted, learned"], 0)
    lengths = []
    for block in (*model.backbone.layers, *model.neck.decoder_blocks):
        block.attn.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    losses = model.loss(torch.randn(6, 3, 32, 32), [])
    assert lengths == [17, 33]  # the class token, the seen and the predicted
    losses["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.masking.parameters())
