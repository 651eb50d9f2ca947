"""The comparison on ImageNet: its configs differ in the masks alone and cost the same; its table
tells the truth; its rehearsal is of the configs as they are.
"""

from __future__ import annotations

import copy
import csv
import functools
import json
import re
import subprocess

import pytest
import torch

from tests.conftest import ROOT
from tests.helpers.tables import narrow

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmpretrain.registry import MODELS

from benchmarks import evidence_kit
from benchmarks.evidence_kit import CONFIGS, EVALUATIONS, RANDOM, accuracies, settings, table
from benchmarks.evidence_rehearsal import page, rehearse, shortened
from benchmarks.overhead import flops

README = CONFIGS / "README.md"
LENGTH = {"max_epochs", "train_cfg", "param_scheduler"}  # of arms whose step has other FLOPs


load = functools.cache(Config.fromfile)  # a second each


def arms(setting):
    return {path.stem: load(path) for path in evidence_kit.arms(setting)}


@pytest.mark.parametrize("setting", settings(), ids=lambda path: path.name)
def test_the_arms_of_a_setting_differ_in_the_masks_alone(setting):
    found = arms(setting)
    assert RANDOM in found
    masks = {json.dumps(cfg.model.masking, sort_keys=True) for cfg in found.values()}
    assert len(masks) == len(found) == 7
    for cfg in found.values():
        assert cfg.model.backbone.mask_ratio == 0.75
        names = {key for key in cfg if not key.startswith("base_")}
        for key in names - {"model"} - LENGTH:
            assert cfg[key] == found[RANDOM][key], key
        for key in set(cfg.model) - {"masking"}:
            assert cfg.model[key] == found[RANDOM].model[key], key


@functools.cache
def step_flops(size, name):
    """Of an image, forward and backward: the same on ImageNet-100 and ImageNet-1k."""
    model = MODELS.build(load(CONFIGS / f"in1k_{size}/{name}.py").model)
    return flops(model.train(), torch.zeros(1, 3, 224, 224))


def with_its_size(path):
    """Models of one size are counted by one worker, once."""
    return pytest.param(path, id=path.name, marks=pytest.mark.xdist_group(path.name.split("_")[1]))


@pytest.mark.slow
@pytest.mark.parametrize("setting", [with_its_size(path) for path in settings()])
def test_the_arms_of_a_setting_train_for_equal_flops(setting):
    size = setting.name.partition("_")[2]
    found = arms(setting)
    total = found[RANDOM].train_cfg.max_epochs * step_flops(size, RANDOM)
    for name, cfg in found.items():
        epochs = cfg.train_cfg.max_epochs
        assert epochs * step_flops(size, name) == pytest.approx(total, rel=0.01), name
        warm_up, cosine = cfg.param_scheduler
        assert warm_up == found[RANDOM].param_scheduler[0]
        assert (cosine.begin, cosine.end) == (warm_up.end, epochs)
        assert cosine.T_max == epochs - warm_up.end


@pytest.mark.parametrize("setting", settings(), ids=lambda path: path.name)
def test_the_readme_says_for_how_many_epochs_an_arm_trains(setting):
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d.*) \| (\d.*) \|$", README.read_text(), re.M)
    said = {name: (in1k, in100) for name, in1k, in100 in rows}
    images, size = setting.name.split("_")
    for name, cfg in arms(setting).items():
        small, *base = said[name][images == "in100"].split(" / ")
        epochs = base[0] if base and size == "vit-b" else small
        assert int(epochs) == cfg.train_cfg.max_epochs, name


@pytest.mark.parametrize("setting", settings(), ids=lambda path: path.name)
def test_a_linear_probe_has_as_many_steps_as_the_recipe_and_its_rate_an_image(setting):
    cfg = load(setting / "linear.py")
    batch = 8 * cfg.train_dataloader.batch_size
    images = 127_000 if setting.name.startswith("in100_") else 1_281_167
    assert images // batch >= 1_281_167 // 16384
    assert cfg.optim_wrapper.optimizer.lr / batch == pytest.approx(6.4 / 16384)


@pytest.mark.parametrize("setting", settings(), ids=lambda path: path.name)
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_what_is_evaluated_is_what_was_trained(setting, evaluation):
    trained = arms(setting)[RANDOM]
    cfg = load(setting / f"{evaluation}.py")
    small = setting.name.endswith("vit-s")
    width = 384 if small else 768
    assert trained.model.neck.embed_dim == cfg.model.head.in_channels == width
    assert {trained.model.backbone.arch, cfg.model.backbone.arch} <= (
        {"deit-small"} if small else {"b", "base"}
    )
    epochs = trained.train_cfg.max_epochs
    assert cfg.model.backbone.init_cfg.checkpoint == f"epoch_{epochs}.pth"
    assert sum(part.get("end", 0) == epochs for part in trained.param_scheduler) == 1
    classes = 100 if setting.name.startswith("in100") else 1000
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes


def log(root, place, *rows, epochs=3):
    path = root / place / "20260101_000000/vis_data/scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    (path.parent / "config.py").write_text(f"train_cfg = dict(max_epochs={epochs})")


def top1(value, epoch=3):
    return {"accuracy/top1": value, "step": epoch}


def test_the_table_takes_the_last_epoch_of_what_has_finished_and_pairs_by_seed(tmp_path):
    for seed in range(5):
        rows = [top1(seed + extra, epoch) for epoch, extra in ((1, 10.0), (2, 30.0), (3, 20.0))]
        log(tmp_path, f"in100_vit-s/random/seed{seed}/linear", {"loss": 1.0, "step": 3}, *rows)
        log(tmp_path, f"in100_vit-s/other/seed{seed}/linear", top1(seed + 21.0))
    log(tmp_path, "in100_vit-s/other/seed5/linear", top1(99.0))  # has no partner
    log(tmp_path, "in100_vit-s/other/seed6/linear", top1(99.0, 2))  # not finished
    log(tmp_path, "in100_vit-s/other/seed0/finetune", {"loss": 1.0, "step": 3})
    text = narrow(table(tmp_path))
    assert "| random | linear | 5 | 22.00 | | |" in text
    assert "| other | linear | 6 | 35.67 | +1.00 | +1.00 to +1.00 |" in text
    assert "finetune" not in text


def test_nothing_to_compare_with_is_said(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        table(tmp_path)
    log(tmp_path, "in1k_vit-b/other/seed0/linear", top1(1.0))
    with pytest.raises(ValueError, match="random/seedN"):
        table(tmp_path)


def test_the_run_that_the_readme_shows_has_one_seed_and_evaluates_what_it_trained(tmp_path):
    text = README.read_text()
    (run,) = re.findall(r"(?:^    .*\n)*^    mim train.*\n(?:^    .*\n)*", text, re.M)
    checkpoint = "echo $PWD/$place/epoch_9.pth > $place/last_checkpoint"  # as mmengine does
    stub = f'mim() {{ echo "$@"; mkdir -p $place; {checkpoint}; }}\n'
    done = subprocess.run(
        ["bash", "-euc", stub + run.replace("seed=0", "seed=3")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    trained, *evaluated = done.stdout.splitlines()
    assert len(evaluated) == len(EVALUATIONS)
    for line in (trained, *evaluated):
        (config,) = re.findall(r"configs/\S+\.py", line)
        assert (ROOT / config).exists()
        assert "randomness.seed=3" in line
    place = tmp_path / "work_dirs/evidence/in100_vit-s/half_random/seed3"
    for line, name in zip(evaluated, EVALUATIONS, strict=True):
        assert f"/{name}.py" in line
        assert f"seed3/{name} " in line
        assert f"init_cfg.checkpoint={place}/epoch_9.pth" in line


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("setting", settings(), ids=lambda path: path.name)
def test_a_rehearsal_keeps_optimizer_and_schedules(setting, gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for path in setting.glob("*.py"):
        was = copy.deepcopy(load(path))
        cfg = shortened(copy.deepcopy(was), tmp_path, tmp_path)
        for key in ("model", "custom_hooks", "data_preprocessor", "param_scheduler"):
            assert cfg.get(key) == was.get(key), key
        for name in ("train_dataloader", "val_dataloader"):
            if name in was:
                assert cfg[name].dataset.pipeline == was[name].dataset.pipeline
        if not gpu and "type" in was.optim_wrapper:  # mixed precision needs a GPU
            was.optim_wrapper.type = "OptimWrapper"
            was.optim_wrapper.pop("loss_scale", None)
        assert cfg.optim_wrapper == was.optim_wrapper


@pytest.mark.slow
def test_an_arm_runs_from_pre_training_to_the_table(tmp_path):
    before, linear, finetune = rehearse("in100_vit-s/half_random", tmp_path)
    assert [row["config"] for row in (before, linear, finetune)] == [
        f"in100_vit-s/{name}" for name in ("half_random", *EVALUATIONS)
    ]
    assert (before["optimizer"], linear["optimizer"], finetune["optimizer"]) == (
        "AdamW", "LARS", "AdamW"
    )  # fmt: skip
    assert before["rates"] == linear["rates"] == 1
    assert finetune["rates"] == 14  # layer decay: patches, 12 blocks, head
    assert len(before["losses"].split()) == 2
    found = accuracies(tmp_path / "in100_vit-s")
    assert {name: sorted(by_seed) for name, by_seed in found["half_random"].items()} == {
        name: [0] for name in EVALUATIONS
    }


def test_a_rehearsal_leaves_real_trainings_alone(tmp_path):
    checkpoint = tmp_path / "in100_vit-s/half_random/seed0/epoch_400.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        rehearse("in100_vit-s/half_random", tmp_path)
    assert checkpoint.exists()


def test_the_committed_rehearsal_is_of_every_config():
    path = ROOT / "docs/results/rehearsal.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    configs = [path for setting in settings() for path in setting.glob("*.py")]
    names = [f"{path.parent.name}/{path.stem}" for path in configs]
    assert sorted(row["config"] for row in rows) == sorted(names)
    assert path.with_suffix(".md").read_text().endswith(page(rows))
