"""The study's statistics beside slow references, and that what is compared belongs together."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from scipy import stats
from sklearn.metrics import roc_auc_score

from amn_masking import AdversarialMasking, PatchMask
from amn_masking.estimators import ESTIMATORS
from benchmarks.study import figures, steps, store, summary, tables
from benchmarks.study.__main__ import RESULTS
from benchmarks.study.cifar_tables import write_cifar
from benchmarks.study.controls import LeastVarianceMasking, NoiseMasking
from benchmarks.study.data import load
from benchmarks.study.evidence import write_details
from benchmarks.study.experiments import CHOSEN, EQUAL_FLOPS, EQUAL_TIME, EXPERIMENTS, FOUND, report
from benchmarks.study.learning_tables import write_learning
from benchmarks.study.measures import lift, patch_share, ranking_auc
from benchmarks.study.pool import csv_of
from benchmarks.study.settings import RECIPES, USABLE, learned, random_masks, ratio_of
from benchmarks.study.stats import compare, holm
from benchmarks.study.summary import CHART, write_summary
from benchmarks.study.tables import write_all
from tests.helpers.tables import narrow

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(p_values)
def test_holm_rejects_what_its_steps_reject(p):
    """Holm's own steps: the smallest against level / n, the next against level / (n - 1), ..."""
    corrected = holm(p)
    for level in (0.01, 0.05, 0.2, 0.7):
        rejected, left = set(), sorted(range(len(p)), key=p.__getitem__)
        while left and p[left[0]] * len(left) <= level:
            rejected.add(left.pop(0))
        assert {i for i, value in enumerate(corrected) if value <= level} == rejected


@given(p_values)
def test_holm_lies_between_no_correction_and_bonferroni(p):
    for raw, corrected in zip(p, holm(p), strict=True):
        assert raw <= corrected <= min(1.0, raw * len(p))


def test_holm_leaves_out_what_was_not_tested():
    assert holm([0.01, float("nan"), 0.04])[::2] == [0.02, 0.04]
    assert np.isnan(holm([0.01, float("nan")])[1])


def test_a_comparison_pairs_the_seeds():
    """However much seeds differ, a constant difference stays one."""
    one = {seed: seed + 0.25 for seed in (5, 1, 4, 3, 2, 9)}
    other = {seed: float(seed) for seed in (1, 2, 3, 4, 5, 7)}
    found = compare(one, other)
    assert found.differences == (0.25,) * 5
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def test_a_comparison_without_a_common_seed_is_refused():
    with pytest.raises(ValueError, match="no seed in common"):
        compare({1: 0.5}, {2: 0.5})


def test_few_seeds_get_no_interval():
    found = compare({s: 0.5 + s / 10 for s in range(4)}, dict.fromkeys(range(4), 0.4))
    assert np.isnan([found.low, found.high, found.p]).all()


def test_the_interval_and_p_beside_all_samples_with_replacement():
    differences = np.array([0.03, 0.01, 0.04, -0.01, 0.05])
    found = compare(dict(enumerate(differences)), dict.fromkeys(range(5), 0.0))
    means = np.mean(list(itertools.product(differences, repeat=5)), axis=1)
    # BCa moves the ends of the plain percentile interval, by little where the skew is small.
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.008)
    assert found.high == pytest.approx(high, abs=0.008)
    t = differences.mean() / (differences.std(ddof=1) / 5**0.5)
    assert found.p == pytest.approx(2 * stats.t.sf(t, 4))


@given(st.integers(0, 1000))
def test_the_auc_of_patch_scores_is_the_mean_of_scikit_learns(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (5, 9), generator=generator).float()  # with ties
    positive = torch.rand(5, 9, generator=generator) < 0.4
    positive[0] = True  # an image without a negative patch does not count
    positive[1, :2] = torch.tensor([True, False])
    both = [i for i in range(5) if positive[i].any() and not positive[i].all()]
    slow = np.mean([roc_auc_score(positive[i], scores[i]) for i in both])
    assert ranking_auc(scores, positive) == pytest.approx(slow, abs=1e-6)


def test_lift_is_1_for_random_masks_and_more_for_masks_of_the_region():
    share = torch.zeros(2000, 16)
    share[torch.arange(2000), torch.arange(2000) % 16] = 0.5
    noise = torch.rand(2000, 16, generator=torch.Generator().manual_seed(0))
    masks = PatchMask.from_shuffle(noise.argsort(1), 12, (4, 4))
    assert lift(masks.mask, share) == pytest.approx(1, abs=0.1)
    assert lift((share > 0).float(), share) == pytest.approx(16)
    assert lift((share == 0).float(), share) == 0


def row(experiment: str, setting, seed: int, probe: float) -> store.Row:
    return dict.fromkeys(store.COLUMNS, "") | {
        "experiment": experiment,
        "data": setting.recipe.data,
        "strategy": setting.strategy,
        "seed": str(seed),
        "split": "tune" if seed < 100 else "report",
        "settings": setting.to_json(),
        "probe": str(probe),
        "hardware": "a processor",
    }


def test_tuning_and_report_seeds_are_never_put_together(tmp_path):
    settings = EXPERIMENTS["tiny"]()
    rows = [row("tiny", s, seed, 0.1 if seed < 100 else 0.9) for s in settings for seed in (0, 100)]
    store.write(tmp_path / "study_tiny.csv", rows)
    write_all(tmp_path)
    tuning, report = (tmp_path / "study.md").read_text().split("## tiny, digits8, report seeds")
    assert "0.100" in tuning
    assert "0.900" not in tuning
    assert "0.900" in report
    assert "0.100" not in report


def test_rows_of_settings_that_are_no_more_are_left_out():
    setting = random_masks(RECIPES["digits8"], 0.75)
    other = replace(setting, recipe=replace(setting.recipe, lr=0.123))
    rows = [row("tiny", s, 0, 0.5) for s in (setting, other)]
    assert [json.loads(r["settings"])["recipe"]["lr"] for r in tables.current("tiny", rows)] == [
        setting.recipe.lr
    ]


def test_the_tables_differences_are_by_seed():
    _, masked, learned = EXPERIMENTS["tiny"]()
    rows = [row("tiny", masked, s, 0.1 * s) for s in (1, 2, 3)]
    rows += [row("tiny", learned, s, 0.1 * s + 0.05) for s in (2, 3, 4)]
    rows += [row("tiny", replace(learned, strategy="stranger"), s, 0.9) for s in (7, 8)]
    assert "stranger" not in "".join(tables.comparisons(rows, rows))
    text = tables.comparisons(rows, rows)[-1]
    assert "+0.050" in text
    assert text.split()[-2] == "2"


def test_each_strategy_is_reported_at_the_ratio_that_the_tuning_seeds_choose():
    """Even where the report seeds would choose another."""
    recipe = RECIPES["digits8"]
    tuned = {("random", 0.5): 0.6, ("random", 0.75): 0.5, ("adversarial", 0.5): 0.4}
    tuned |= {("adversarial", 0.75): 0.55}
    reported = {("random", 0.5): 0.7, ("random", 0.75): 0.9, ("adversarial", 0.5): 0.95}
    reported |= {("adversarial", 0.75): 0.8}
    rows = {
        first: [
            row(
                "grid",
                random_masks(recipe, r) if s == "random" else learned(recipe, r, s),
                seed,
                probe,
            )
            for (s, r), probe in probes.items()
            for seed in (first, first + 1)
        ]
        for first, probes in ((0, tuned), (100, reported))
    }
    text = tables.comparisons(rows[100], rows[0])
    assert narrow(text[-1]).startswith("| adversarial | 0.75 | 0.5 | +0.100 ")
    assert "tuning seeds:" in text[-5]


def test_the_committed_tables_are_made_of_the_committed_rows(tmp_path):
    docs, filled = RESULTS.parent, ("evidence.md", "price.md", "prediction_ratio.md")
    (tmp_path / "images").mkdir()
    for page in filled:
        shutil.copy(docs / page, tmp_path)
    shutil.copytree(RESULTS, tmp_path / "results")
    write_all(tmp_path / "results")
    write_learning(tmp_path / "results")
    write_details(tmp_path / "results")
    write_summary(tmp_path, tmp_path / "results")
    write_cifar(tmp_path / "results")
    made = ("shapes_and_digits.md", "study.md", "learning.md", "cifar.md")
    for page in (*filled, *(f"results/{name}" for name in made)):
        assert (tmp_path / page).read_text() == (docs / page).read_text(), page
    assert (tmp_path / CHART).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("left", [0, 2])
def test_tables_are_made_while_runs_are_missing(tmp_path, left):
    """None of the rows, or half of them, some of a seed that random masks do not have."""
    docs = RESULTS.parent
    (tmp_path / "images").mkdir()
    for page in ("evidence.md", "price.md", "prediction_ratio.md"):
        shutil.copy(docs / page, tmp_path)
    shutil.copytree(RESULTS, tmp_path / "results")
    for name in ("cifar_cpu", "cifar_time", "learning_report", "learning", "noise"):
        path = csv_of(tmp_path / "results", name)
        rows = store.read(path)
        path.unlink(missing_ok=True)
        for number, one in enumerate(rows):
            if left and number % 4 >= left:
                store.add(path, one | ({"seed": "199"} if number % 2 else {}))
    write_learning(tmp_path / "results")
    write_cifar(tmp_path / "results")
    write_summary(tmp_path, tmp_path / "results")


@pytest.mark.parametrize("data", USABLE)
def test_the_reports_ratios_are_the_best_of_the_committed_tuning_rows(data):
    rows = [
        row
        for experiment in ("grid", "others")
        for row in tables.current(experiment, store.read(csv_of(RESULTS, experiment)))
    ]
    best = tables.best_cells(tables.of_split(rows, "tune", data))
    assert {name: ratio for name, (_, ratio) in best.items()} == CHOSEN[data]


@pytest.mark.parametrize("data", FOUND)
def test_what_the_search_found_is_its_best_committed_trial(data):
    worths: dict[str, list[float]] = {}
    for found in tables.of_split(store.read(csv_of(RESULTS, "search")), "tune", data):
        if found["strategy"] != "random":
            worths.setdefault(found["settings"], []).append(store.worth(found))
    whole = max(map(len, worths.values()))  # the others were pruned
    best = max(worths, key=lambda one: (len(worths[one]) == whole, np.mean(worths[one])))
    assert json.loads(best)["masking"] == FOUND[data]


def test_the_demo_s_config_masks_as_the_search_found():
    """But for the estimator, which was chosen later."""
    configs = RESULTS.parents[1] / "configs/mmpretrain"
    model = Config.fromfile(configs / "mae_amn_vit-tiny_photos.py").model
    found = FOUND["shapes"]
    shipped = AdversarialMasking(
        **{"mask_ratio": model.backbone.mask_ratio}
        | {option: value for option, value in model.masking.items() if option != "type"}
    )
    for option in set(found) - {"network", "estimator", "type"}:
        assert getattr(shipped, option) == found[option]


def test_the_default_estimator_is_the_better_of_the_committed_rows():
    probes: dict[str, list[float]] = {}
    for row in store.read(RESULTS / "study_estimator.csv"):
        kind = json.loads(row["settings"])["masking"]["estimator"]["type"]
        probes.setdefault(kind, []).append(float(row["probe"]))
    assert {len(values) for values in probes.values()} == {8}
    best = max(probes, key=lambda kind: np.mean(probes[kind]))
    assert type(AdversarialMasking().estimator) is ESTIMATORS[best]


@pytest.mark.parametrize("chosen", [EQUAL_FLOPS, EQUAL_TIME])
def test_the_epochs_at_equal_cost_are_those_of_the_committed_measurement(chosen):
    cost = "flops_ratio" if chosen is EQUAL_FLOPS else "step_ratio"
    with (RESULTS / "study_steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = {(row["data"], store.said_now(row["settings"])): row for row in rows}
    for data, epochs in chosen.items():
        assert set(epochs) <= {s.strategy for s in report() if s.recipe.data == data}
        for setting in report():
            if setting.recipe.data == data and setting.strategy in epochs:
                found = steps.epochs(measured[data, setting.to_json()], cost)
                assert epochs[setting.strategy] == found, setting.strategy


def test_a_page_without_a_place_for_each_table_is_refused(tmp_path):
    page = tmp_path / "shapes_and_digits.md"
    page.write_text("<!-- begin grid -->\n<!-- end grid -->\n<!-- begin colour -->\n")
    with pytest.raises(ValueError, match=r"unknown or missing: \['ablation', 'colour'"):
        write_details(tmp_path)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_no_experiment_has_a_setting_twice(name):
    settings = [setting.to_json() for setting in EXPERIMENTS[name]()]
    assert len(set(settings)) == len(settings)
    labels = [(s.recipe.data, s.strategy, ratio_of(s.masking)) for s in EXPERIMENTS[name]()]
    assert len(set(labels)) == len(labels)


def test_least_variance_masks_the_flattest_patches():
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, :2, :2] = torch.tensor([[0.0, 2], [2, 0]])
    images[0, 0, 2:, 2:] = torch.tensor([[0.0, 1], [1, 0]])
    masking = LeastVarianceMasking(mask_ratio=0.5, patch_size=2)
    assert masking(images).mask.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("hide", [True, False])
def test_noise_is_hidden_first_or_last_and_the_rest_is_random(hide):
    images = load("shapes", 0).train
    masking, pixels = NoiseMasking(0.5, 9, hide=hide), images.centre()
    noise, ink = (patch_share(images.centre(part), 9) for part in (images.noise, images.ink))
    noisy = noise > 0.1
    flagged = (masking.priorities(pixels, 8, None) >= 0) == hide
    assert (flagged == noisy).float().mean() > 0.99
    mask = masking(pixels).mask
    assert mask[noisy].float().mean() == pytest.approx(float(hide), abs=0.03)
    # Among the others foreground is hidden as often as ground: 1.00 with a deviation of 0.006.
    share, content = ink[~noisy], mask[~noisy].float()
    assert (content * share).mean() / content.mean() == pytest.approx(share.mean(), rel=0.02)


@pytest.mark.parametrize(
    ("differences", "found"),
    [
        ([-0.3, -0.2, -0.2, -0.1, -0.2], "C3"),
        ([0.3, 0.2, 0.2, 0.1, 0.2], "C2"),
        ([0.3, 0.2, 0.2, -0.4, 0.2], "0.4"),  # its interval holds zero
        ([-0.3, -0.2, -0.1], figures.PALE["C3"]),
        ([0.3, 0.2, 0.1, 0.1], figures.PALE["C2"]),
        ([0.3, 0.2, -0.1, 0.1], "0.4"),
        ([-0.3, -0.2], "0.4"),
        ([0.3], "0.4"),
    ],
)
def test_a_colour_needs_an_interval_and_a_pale_one_three_seeds_of_one_sign(differences, found):
    one = compare(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert figures.colour(one) == found


def test_points_at_another_price_than_their_panel_s_are_hollow(tmp_path, monkeypatch):
    """And the panel's title says its price."""
    shown: dict[str, Collection[tuple[str, str]]] = {}
    monkeypatch.setattr(
        summary, "forest", lambda panels, lines, hollow, path: shown.update(hollow=hollow)
    )
    summary.chart(RESULTS, tmp_path / "chart.png")
    by_price = {title.split("\n")[1] for title, _ in shown["hollow"]}
    assert by_price == {"equal FLOPs", "equal FLOPs of the encoder"}
    assert ("CIFAR-10\nequal FLOPs", "rewarded by progress") in shown["hollow"]
