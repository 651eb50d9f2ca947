"""The study from its command line, at a size that shows nothing but that it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amn_masking.patches import masked_mean
from benchmarks.study import matrix, search, smoke, steps, store
from benchmarks.study.__main__ import main
from benchmarks.study.data import load
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.finetune import finetune
from benchmarks.study.measures import reference_masks
from benchmarks.study.pool import csv_of, run_all, workers
from benchmarks.study.runs import run
from benchmarks.study.settings import RECIPES, Setting, learned, random_masks
from benchmarks.study.training import InMemoryImages, build, features, make_runner, train
from tests.conftest import ROOT, thorough_only

TINY = RECIPES["digits8"]


def study(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.study", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_study_goes_on_and_has_each_run_once(tmp_path, capsys):
    path = tmp_path / "study_tiny.csv"
    arguments = ("run", "tiny", "--seeds", "0", "100", "--jobs", "1", "--results", str(tmp_path))
    process = study(*arguments)
    while not store.read(path):
        assert process.poll() is None, "ended without a row"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = store.read(path)
    assert 1 <= len(before) < 6

    out, _ = study(*arguments).communicate(timeout=200)
    assert f"{6 - len(before)} runs to do" in out
    rows = store.read(path)
    assert rows[: len(before)] == before
    assert len({store.key(row) for row in rows}) == len(rows) == 6
    assert [row["split"] for row in rows] == ["tune"] * 3 + ["report"] * 3
    trained = [row for row in rows if row["strategy"] != "pixels"]
    assert all(float(row["probe"]) > 0.2 and float(row["steps"]) == 22 for row in trained)

    main(list(arguments))
    assert "0 runs to do" in capsys.readouterr().out
    assert store.read(path) == rows
    main(["tables", "--results", str(tmp_path)])
    assert f"{float(rows[1]['probe']):.3f}" in (tmp_path / "study.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["SIGINT", *(pytest.param(n, marks=thorough_only) for n in ("SIGKILL", "SIGTERM"))]
)
def test_workers_end_with_a_study_that_is_killed_in_the_middle_of_a_run(name):
    script = (
        "import os, signal, time; from benchmarks.study import pool\n"
        # What a shell starts in the background is deaf to it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n"
        "    with pool.workers(2) as workers:\n"
        "        print(workers.submit(os.getpid).result(), flush=True)\n"
        "        workers.submit(time.sleep, 300).result()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    worker = int(process.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    time.sleep(0.5)
    process.send_signal(getattr(signal, name))  # to the parent alone
    assert process.wait(timeout=20) != 0
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_one_run_twice_has_the_same_numbers_whatever_ran_before():
    setting = EXPERIMENTS["tiny"]()[2]
    one = run("tiny", setting, 0)
    run("tiny", random_masks(TINY, 0.5), 1)
    again = run("tiny", setting, 0)
    assert {m: one[m] for m in store.METRICS} == {m: again[m] for m in store.METRICS}


def test_strategies_of_one_seed_start_from_one_autoencoder_and_see_the_same_batches(tmp_path):
    states, batches = [], []
    for draws, setting in enumerate((random_masks(TINY, 0.75), learned(TINY, 0.25, "adversarial"))):
        model = build(setting, 3)
        states.append({n: p for n, p in model.state_dict().items() if "masking" not in n})
        runner = make_runner(model, load("digits8", 3).train, setting, 3, str(tmp_path))
        runner.call_hook = lambda *args, **kwargs: None
        seen = []
        model.train_step = lambda data_batch, optim_wrapper, seen=seen, draws=draws: (
            seen.append(data_batch["inputs"]),
            torch.rand(draws),  # strategies draw more or fewer random numbers
        )
        runner.train()
        batches.append(torch.cat(seen))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(*batches)


def test_training_crops_are_pieces_of_their_pictures():
    images = load("digits8", 0).train
    dataset = InMemoryImages(images, 0)
    ids = [5, 0, 600]
    crops = dataset.__getitems__(ids)["inputs"]
    corners = set()
    for crop, index in zip(crops, ids, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(images.pixels[index, :, y : y + 8, x : x + 8], crop)
        ]
        assert found
        corners |= set(found)
    assert len(corners) > 1


def test_an_untrained_row_is_the_trained_ones_start():
    """And features do not depend on the strategy's masks."""
    pixels = load("digits8", 0).test.centre()
    one = features(build(replace(random_masks(TINY, 0.75), masking=None), 0), pixels)
    model = build(random_masks(TINY, 0.25), 0)
    assert torch.equal(one, features(model, pixels))
    assert torch.equal(one[7:9], features(model, pixels[7:9]))


def test_reference_masks_hide_the_foreground_or_leave_it():
    ink = torch.rand(20, 16, generator=torch.Generator().manual_seed(0))
    masks = reference_masks(torch.zeros(20, 1, 8, 8), patch=2, seed=0, ink=ink)
    hidden, visible = masks["foreground_hidden"].mask, masks["foreground_visible"].mask
    assert torch.equal(hidden, 1 - visible)
    assert (
        ink[hidden == 1].view(20, 8).min(1).values > ink[hidden == 0].view(20, 8).max(1).values
    ).all()
    assert [int(masks[f"random_{r}"].mask[0].sum()) for r in (0.25, 0.5, 0.75)] == [4, 8, 12]


def test_two_processes_do_not_write_one_run_twice_nor_lose_a_row(tmp_path):
    path = tmp_path / "study_tiny.csv"
    script = (
        "import sys; from pathlib import Path; from benchmarks.study import store\n"
        "for seed in range(20):\n"
        "    row = dict.fromkeys(store.COLUMNS, sys.argv[2]) | dict(settings='s', seed=str(seed))\n"
        "    row['commit'] = 100_000 * 'c'\n"
        "    store.add(Path(sys.argv[1]), row)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path), name], env=environment, cwd=ROOT)
        for name in "ab"
    ]
    seen = 0
    while any(process.poll() is None for process in processes):
        rows = store.read(path)  # never half of a file, or of a row
        assert len(rows) >= seen
        assert all(len(row["commit"]) == 100_000 for row in rows)
        seen = len(rows)
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(int(row["seed"]) for row in store.read(path)) == list(range(20))


def test_a_row_of_other_columns_is_refused(tmp_path):
    row = dict.fromkeys(store.COLUMNS, "") | {"colour": "red"}
    row.pop("seed")
    with pytest.raises(ValueError, match=r"too many or missing: \['colour', 'seed'\]"):
        store.add(tmp_path / "x.csv", row)


@thorough_only
@pytest.mark.slow
def test_smoke_runs_anew_and_says_what_it_found_beside_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "EXPERIMENT", "tiny")
    monkeypatch.setattr(smoke, "SEEDS", [0])
    row = run("tiny", EXPERIMENTS["tiny"]()[1], 0)
    store.add(tmp_path / "study_tiny.csv", row)
    smoke.rerun(jobs=1, results=tmp_path)
    out = capsys.readouterr().out
    assert "3 runs to do" in out
    assert f"random, seed 0: {row['probe']} now, {row['probe']} committed" in out
    assert "adversarial, seed 0: " in out
    assert "now, none committed" in out
    assert len(store.read(tmp_path / "study_tiny.csv")) == 1


def test_fine_tuning_beats_chance_and_depends_on_where_it_starts():
    data = load("digits8", 0)
    found = [finetune(build(random_masks(TINY, 0.5), 0), data, seed=0) for _ in range(2)]
    assert found[0] == found[1] > 0.2  # of ten classes
    weakened = build(random_masks(TINY, 0.5), 0)
    for parameter in weakened.backbone.parameters():
        parameter.data.zero_()
    assert finetune(weakened, data, seed=0) < found[0] - 0.1


@thorough_only
@pytest.mark.slow
def test_a_search_goes_on_where_it_was_and_prunes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "UNPRUNED", 1)
    # Of the true worth of such small runs another processor makes another order.
    monkeypatch.setattr(store, "worth", lambda row: -float(row["mask_ratio"]))
    search.search("digits8", trials=2, jobs=1, results=tmp_path)
    before = store.read(csv_of(tmp_path, "search"))
    first = trials_of(capsys.readouterr().out)
    search.search("digits8", trials=4, jobs=1, results=tmp_path)
    rows = store.read(csv_of(tmp_path, "search"))
    lines = trials_of(capsys.readouterr().out)
    assert rows[: len(before)] == before
    assert lines[:2] == first
    assert len(lines) == 4
    seeds = [2 if ", pruned: " in line else 4 for line in lines]
    assert len(rows) == 4 + sum(seeds)  # and the random masks'
    # Pruned is what after two seeds is below the median of the trials that were run whole.
    worths = [store.worth(row) for row in rows[4:]]
    halves = [np.mean(worths[sum(seeds[:trial]) :][:2]) for trial in range(4)]
    for trial in range(1, 4):
        whole = [half for half, count in zip(halves[:trial], seeds, strict=False) if count == 4]
        assert (seeds[trial] == 2) == (halves[trial] < np.median(whole)), trial
    assert seeds[:3] == [4, 2, 2]  # at ratios of 0.25, 0.75 and 0.5


def trials_of(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("trial ")]


def test_the_matrix_has_each_autoencoder_under_each_strategy_s_masks(tmp_path, monkeypatch):
    settings = EXPERIMENTS["tiny"]()[1:]
    monkeypatch.setattr(matrix, "matrix", lambda data: settings)
    rows = matrix.rows_of_seed("digits8", 3)
    names = ["random", "adversarial"]
    assert [(r["trained"], r["under"]) for r in rows] == [(a, b) for a in names for b in names]

    data = load("digits8", 3)
    pixels = data.test.centre()
    models = [build(setting, 3) for setting in settings]
    for model, setting in zip(models, settings, strict=True):
        train(model, data.train, setting, 3)
    torch.manual_seed(3)
    masks = [model.train().make_mask(pixels) for model in models]
    slow = [
        masked_mean(model.error_under(mask, pixels, []), mask.mask)
        for model in models
        for mask in masks
    ]
    assert [float(r["error"]) for r in rows] == pytest.approx([float(e) for e in slow], rel=1e-5)


def test_a_seed_of_other_strategies_is_no_seed_of_the_matrix(tmp_path, monkeypatch, capsys):
    settings = [setting.to_json() for setting in matrix.matrix("shapes")]
    rows = [
        dict.fromkeys(matrix.COLUMNS, "") | dict(data="shapes", seed=seed, settings=known)
        for seed, held in (("100", settings), ("101", settings[1:]), ("102", [*settings, "old"]))
        for known in held
    ]
    store.write(csv_of(tmp_path, "matrix"), rows, matrix.COLUMNS)
    assert {row["seed"] for row in matrix.read(tmp_path)} == {"100"}

    monkeypatch.setattr(matrix, "workers", lambda jobs: ThreadPoolExecutor(jobs))
    anew = [dict(row, seed="101") for row in rows if row["seed"] == "100"]
    monkeypatch.setattr(matrix, "rows_of_seed", lambda data, seed: anew)
    matrix.write("shapes", [100, 101], 1, tmp_path)
    assert "matrix: 1 seeds to do" in capsys.readouterr().out
    assert {row["seed"] for row in matrix.read(tmp_path)} == {"100", "101"}


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_stops_no_other(tmp_path, capsys):
    impossible = replace(random_masks(TINY, 0.99), strategy="impossible")
    with workers(1) as pool, pytest.raises(ValueError, match="leaves none visible"):
        run_all("tiny", [(impossible, 0), (EXPERIMENTS["tiny"]()[0], 0)], pool, tmp_path)
    assert "impossible, seed 0 FAILED: mask_ratio=0.99" in capsys.readouterr().out
    assert [row["strategy"] for row in store.read(csv_of(tmp_path, "tiny"))] == ["pixels"]


def test_steps_are_beside_those_of_random_masks():
    _, masked, learnt = EXPERIMENTS["tiny"]()
    rows = steps.measure([masked, learnt, replace(masked, strategy="twin")], rounds=3)
    assert [row["strategy"] for row in rows] == ["random", "adversarial", "twin"]
    assert [row["flops_ratio"] for row in rows] == ["1.0000"] * 3  # the encoder's, at one ratio
    assert float(rows[0]["step_ratio"]) == 1
    assert 0.3 < float(rows[2]["step_ratio"]) < 3
    assert steps.epochs(rows[1] | {"step_ratio": "0.5"}, "step_ratio") == 2 * TINY.epochs
    with pytest.raises(ValueError, match="one setting of random masks to compare with"):
        steps.measure([learnt])


def test_passes_that_only_look_count_forward_alone():
    ratio = 0.75
    oracle = Setting("oracle", TINY, dict(type="OracleMasking", mask_ratio=ratio, draws=4))
    rows = steps.measure([random_masks(TINY, ratio), oracle], rounds=1)
    # A step is one pass forward and two passes' worth backward; the four looks have no backward.
    assert float(rows[1]["flops_ratio"]) == pytest.approx((3 + 4) / 3, abs=1e-3)
