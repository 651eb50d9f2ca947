"""The comparison on ImageNet: its configs differ in the masks alone; its table tells the truth."""

from __future__ import annotations

import json

import pytest

from tests.helpers.tables import narrow

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmengine.runner import Runner

from benchmarks.evidence_kit import EVALUATIONS, RANDOM, accuracies, rehearse, settings, table


def arms(setting):
    return {
        path.stem: Config.fromfile(path)
        for path in setting.glob("*.py")
        if path.stem not in EVALUATIONS
    }


@pytest.mark.parametrize("setting", settings(), ids=lambda path: path.name)
def test_the_arms_of_a_setting_differ_in_the_masks_alone(setting):
    found = arms(setting)
    assert RANDOM in found
    assert len({json.dumps(cfg.model.masking, sort_keys=True) for cfg in found.values()}) == 4
    for cfg in found.values():
        assert cfg.model.backbone.mask_ratio == 0.75
        assert "mask_ratio" not in cfg.model.masking
        names = {key for key in cfg if not key.startswith("base_")}
        for key in names - {"model"}:
            assert cfg[key] == found[RANDOM][key], key
        for key in set(cfg.model) - {"masking"}:
            assert cfg.model[key] == found[RANDOM].model[key], key


@pytest.mark.parametrize("setting", settings(), ids=lambda path: path.name)
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_what_is_evaluated_is_what_was_trained(setting, evaluation):
    trained = arms(setting)[RANDOM]
    cfg = Config.fromfile(setting / f"{evaluation}.py")
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


@pytest.mark.slow
def test_an_arm_runs_from_pre_training_to_the_table(tmp_path):
    done = rehearse("in100_vit-s/half_random", tmp_path, lambda cfg: Runner.from_cfg(cfg).train())
    assert done == ["in100_vit-s/half_random"]
    found = accuracies(tmp_path / "in100_vit-s")
    assert {name: sorted(by_seed) for name, by_seed in found["half_random"].items()} == {
        name: [0] for name in EVALUATIONS
    }
