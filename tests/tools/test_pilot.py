"""The pilot: what it trains, for how long, what it measures, and what it chooses."""

from __future__ import annotations

import json
import re
from copy import deepcopy

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from torch.utils.flop_counter import FlopCounterMode

from amn_masking.adapters.mmpretrain.mixin import images_of
from amn_masking.tools import pilot as module
from amn_masking.tools.pilot import Pilot, main
from amn_masking.tools.pilot_results import Result, best, table
from amn_masking.tools.short_run import squeezed
from tests.conftest import ROOT, thorough_only
from tests.helpers.downstream import LINEAR, small
from tests.helpers.runner import train
from tests.methods.small_methods import small_config

TWO = {
    "random 0.5": dict(type="RandomMasking", mask_ratio=0.5),
    "adversarial 0.25": dict(type="AdversarialMasking", mask_ratio=0.25),
}


LATE = dict(
    type="AdversarialMasking",
    random_share=dict(type="linear", start=1.0, end=0.0, until=50, by="iter"),
)


@pytest.fixture
def cfg(photos_config):
    photos_config.train_cfg.max_epochs = 40
    return photos_config


def of(cfg, tmp_path, settings=TWO, budget=0.5, images=8, **options):
    return Pilot(cfg, settings, budget, images=images, folder=tmp_path / "runs", **options)


class Planted(Pilot):
    """A pilot whose runs have known ends, in place of trainings."""

    def train(self, name, iterations):
        self.trained.append((name, iterations))
        return Result(iterations, self.ends[name])


def many(count):
    return {f"random {index}": dict(type="RandomMasking", mask_ratio=0.5) for index in range(count)}


@pytest.mark.parametrize(("count", "nan"), [(2, True), (5, False), (8, True)])
def test_the_better_half_goes_on_and_the_best_wins(cfg, tmp_path, count, nan):
    pilot = Planted(cfg, many(count), 4.0, images=8, folder=tmp_path)
    order = torch.randperm(count).tolist()
    pilot.ends = {f"random {index}": float(place) for index, place in enumerate(order)}
    if nan:  # what diverges is worst, not best
        pilot.ends[f"random {order.index(0)}"] = float("nan")
    pilot.trained = []
    results = pilot.run(say=lambda line: None)
    winner = min(pilot.ends, key=lambda name: Result(1, pilot.ends[name]).rank)
    assert best(results) == winner
    assert len(results[winner]) == pilot.rounds == max(map(len, results.values()))
    for length in range(1, pilot.rounds):
        left = {name: found for name, found in results.items() if len(found) == length}
        stayed = {name: found for name, found in results.items() if len(found) > length}
        if left:
            worst = max(found[-1].rank for found in stayed.values())
            assert worst <= min(found[-1].rank for found in left.values())
    assert sum(len(found) == pilot.rounds for found in results.values()) == 2
    # Each round has as many iterations in all, to the last one of each run.
    rounds = [sum(found[n].iterations for found in results.values() if len(found) > n)
              for n in range(pilot.rounds)]  # fmt: skip
    assert max(rounds) - min(rounds) <= count


def test_what_diverged_does_not_go_on_in_the_better_half(cfg, tmp_path):
    pilot = Planted(cfg, many(5), 4.0, images=8, folder=tmp_path)
    nan = float("nan")
    pilot.ends = {f"random {index}": end for index, end in enumerate((nan, nan, 1.0, nan, nan))}
    pilot.trained = []
    results = pilot.run(say=lambda line: None)
    assert best(results) == "random 2"
    assert {name: len(found) for name, found in results.items()} == {
        name: pilot.rounds if name == "random 2" else 1 for name in pilot.ends
    }


def step_flops(cfg, masking):
    """FLOPs of one step on images of the config's size, counted another way: a whole batch."""
    cfg = deepcopy(cfg)
    cfg.model.masking = masking
    model = MODELS.build(cfg.model).train()
    with FlopCounterMode(display=False) as counter:
        losses = model.loss(torch.randn(8, 3, 64, 64), [DataSample() for _ in range(8)])
        model.parse_losses(losses)[0].backward()
    return counter.get_total_flops() / 8


def test_all_runs_together_cost_the_budget(cfg, tmp_path):
    settings = {**many(2), **TWO, "random 0.75": dict(type="RandomMasking", mask_ratio=0.75)}
    pilot = Planted(cfg, settings, 3.0, images=8, folder=tmp_path)
    pilot.ends, pilot.trained = dict.fromkeys(settings, 1.0), []
    pilot.run(say=lambda line: None)
    spent = sum(step_flops(cfg, settings[name]) * count for name, count in pilot.trained)
    steps = (pilot.kept // 14 + (pilot.kept % 14 > 0)) * 40
    own = step_flops(cfg, cfg.model.masking) * steps
    assert 0.95 < spent / own / 3.0 <= 1.0
    # Dear ones train for less in the same round.
    first = dict(pilot.trained[: len(settings)])
    assert first["adversarial 0.25"] < first["random 0.5"] < first["random 0.75"]


def rates(cfg):
    """The learning rates of a real training."""
    found = []

    class Rates(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            found.append(runner.optim_wrapper.param_groups[0]["lr"])

    runner = Runner.from_cfg(cfg)
    runner.register_hook(Rates())
    runner.train()
    return found


@pytest.mark.slow
def test_a_short_run_has_the_whole_of_the_learning_rates(cfg, tmp_path):
    pilot = of(cfg, tmp_path)
    whole = deepcopy(pilot.cfg)
    whole.experiment_name = "whole_rates"
    long = rates(whole)
    short_cfg = pilot.short("random 0.5", len(long) // 3)
    short_cfg.work_dir, short_cfg.experiment_name = str(tmp_path / "short"), "short_rates"
    short = rates(short_cfg)
    assert len(short) == len(long) // 3
    highest = max(long)
    for index, rate in enumerate(short):
        near = long[3 * index : 3 * index + 3]
        assert min(near) - 0.2 * highest <= rate <= max(near) + 0.2 * highest
    assert max(short) > 0.9 * highest
    assert short[0] < 0.1 * highest
    assert short[-1] < 0.05 * highest


def test_schedulers_are_squeezed_by_what_they_count():
    epochs = dict(type="CosineAnnealingLR", T_max=90, begin=10, end=100)
    iters = dict(type="MultiStepLR", by_epoch=False, milestones=[100, 900], gamma=0.1, end=None)
    warm = dict(type="mmengine.LinearLR", end=10, by_epoch=True, convert_to_iter_based=True)
    assert squeezed([warm, epochs, iters], 0.1, epoch=5) == [
        dict(type="mmengine.LinearLR", end=5, by_epoch=False),
        dict(type="CosineAnnealingLR", T_max=45, begin=5, end=50, by_epoch=False),
        dict(type="MultiStepLR", milestones=[10, 90], gamma=0.1, by_epoch=False),
    ]
    assert squeezed(warm, 0.001, epoch=5) == []  # less than an iteration
    assert squeezed(None, 0.1, epoch=5) is None
    # 0.95 an epoch, of which there are 20 in the 10 iterations of a tenth of 200 epochs of 5.
    (falling,) = squeezed(dict(type="ExponentialLR", gamma=0.95), 0.1, epoch=5)
    assert falling["gamma"] ** (0.1 * 5) == pytest.approx(0.95)
    (steps,) = squeezed(dict(type="StepLR", step_size=1), 0.01, epoch=5)
    assert steps["step_size"] == 1


@pytest.mark.parametrize(
    "schedulers", [dict(type="ReduceOnPlateauLR"), dict(generator=dict(type="LinearLR", end=1))]
)
def test_schedulers_that_cannot_be_squeezed_are_refused(schedulers):
    with pytest.raises(ValueError, match="knows those of mmengine"):
        squeezed(schedulers, 0.1, epoch=5)


@pytest.mark.slow
def test_the_ruler_is_the_error_under_random_masks_whatever_the_masks_of_the_training(
    cfg, tmp_path
):
    pilot = of(cfg, tmp_path)
    assert sum(len(images_of(batch["inputs"])) for batch in pilot.held) == 42 - pilot.kept == 8
    runner = train(pilot.short("adversarial 0.25", 60), work_dir=str(tmp_path / "run"))
    measured = pilot.ruler(runner)
    assert pilot.ruler(runner) == measured
    runner.model.masking.mask_ratio = 0.75
    assert pilot.ruler(runner) == measured
    untrained = train(pilot.short("adversarial 0.25", 1), work_dir=str(tmp_path / "one"))
    assert pilot.ruler(untrained) > 1.05 * measured


@pytest.mark.slow
def test_held_out_images_are_not_trained_on(cfg, tmp_path):
    pilot = of(cfg, tmp_path)
    trained = Runner.build_dataloader(
        {**pilot.cfg.train_dataloader, "sampler": dict(type="DefaultSampler", shuffle=False)}
    ).dataset
    held = pilot.cfg.train_dataloader.dataset
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        other = DATASETS.build({**held, "test_mode": True})
    paths = [{x.get_data_info(i)["img_path"] for i in range(len(x))} for x in (trained, other)]
    assert not paths[0] & paths[1]
    assert len(paths[0] | paths[1]) == 42


@pytest.mark.slow
def test_the_command_prints_what_to_paste_and_does_nothing_twice(
    cfg, tmp_path, photos, capsys, monkeypatch
):
    config, settings = tmp_path / "config.py", tmp_path / "settings.py"
    cfg.dump(config)
    settings.write_text(f"settings = {TWO!r}")
    labels = [f"{key}={value}" for key, value in small(photos).items()]
    encoder = ["model.backbone.arch.embed_dims=48", "model.backbone.arch.num_layers=1"]
    encoder += ["model.backbone.arch.num_heads=2", "model.backbone.arch.feedforward_channels=96"]
    encoder += ["model.backbone.frozen_stages=1", "model.head.in_channels=48"]
    arguments = [
        str(config), "--settings", str(settings), "--budget", "0.5", "--images", "8",
        "--work-dir", str(tmp_path / "runs"), "--labels", str(ROOT / LINEAR),
        "--labels-options", *labels, *encoder,
    ]  # fmt: skip
    main(arguments)
    said = capsys.readouterr().out
    done = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert len(done) == 2
    assert all(0 <= result["accuracy"] <= 1 and result["ruler"] > 0 for result in done)
    assert not list((tmp_path / "runs").rglob("*.pth"))  # the checkpoints were for the neighbours
    top = max(result["accuracy"] for result in done)
    name = re.search(r"best: (.*)\. In a config", said)[1]
    assert f"{top:.4f}" in re.search(rf"^{re.escape(name)} .*$", said, re.M)[0]
    lines = said[said.index("model = ") : said.index("One run each")]
    pasted = tmp_path / "pasted.py"
    pasted.write_text(f"_base_ = {str(config)!r}\n{lines}")
    assert Config.fromfile(pasted).model.masking == TWO[name]

    def again(*args, **kwargs):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(Runner, "from_cfg", again)
    main(arguments)
    assert capsys.readouterr().out == said


def test_the_table_has_the_winner_first():
    results = {
        "b": [Result(10, 0.5), Result(20, 0.4)],
        "a": [Result(10, 0.9)],
        "c": [Result(10, 0.6), Result(20, 0.3)],
    }
    lines = table(results).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["c", "b", "a"]
    assert best(results) == "c"
    labelled = {"d": [Result(10, 0.1, 0.5)], "e": [Result(10, 0.9, 0.7)]}
    assert best(labelled) == "e"
    assert "0.7000" in table(labelled).splitlines()[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(settings={"one": TWO["random 0.5"]}), "at least two settings"),
        (dict(budget=0.0), "budget expected a share"),
        (dict(images=40), "40 images to hold out expected at most half .* there are 42"),
        (dict(settings={**TWO, "odd": dict(type="NoMasking")}), "odd.*NoMasking"),
        (dict(settings={**TWO, "none": None}), "'none' expected dict.* got None"),
        (dict(settings={**TWO, "late": LATE}), "'late' .*random_share has a schedule by='iter'"),
    ],
)
def test_what_cannot_work_is_refused(cfg, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        of(cfg, tmp_path, **options)


def test_a_budget_in_which_a_run_is_nothing_is_refused_and_the_one_that_is_named_is_not(
    cfg, tmp_path
):
    with pytest.raises(ValueError, match=r"set --budget .* or more") as error:
        of(cfg, tmp_path, budget=0.001)
    named = float(re.search(r"--budget ([\d.]+)", str(error.value))[1])
    pilot = of(cfg, tmp_path, budget=named)
    assert min(pilot.iterations(name, 2) for name in TWO) == 10


def test_a_method_without_masks_is_refused(cfg, tmp_path):
    cfg.model.type = "MAE"
    with pytest.raises(ValueError, match=r"model\.type='amn_masking\.MAE' .* got 'MAE'"):
        of(cfg, tmp_path)


def test_labels_of_another_encoder_are_refused_before_any_training(cfg, tmp_path, photos):
    labels = Config.fromfile(ROOT / LINEAR)
    labels.merge_from_dict(small(photos))
    with pytest.raises(ValueError, match="the encoder of CONFIG does not fit"):
        of(cfg, tmp_path, labels=labels)


@pytest.mark.slow
def test_a_run_that_diverges_is_the_worst_and_not_the_end(cfg, tmp_path):
    cfg.optim_wrapper.optimizer.lr = 1e30
    pilot = of(cfg, tmp_path)
    with pytest.raises(ValueError, match="every run of this round diverged"):
        pilot.run(say=lambda line: None)
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2


def test_a_ratio_that_moves_costs_what_it_costs_on_average(cfg, tmp_path):
    moving = {
        "rising": dict(type="RandomMasking", mask_ratio=dict(type="linear", start=0.25, end=0.75)),
        "0.25": dict(type="RandomMasking", mask_ratio=0.25),
        "0.75": dict(type="RandomMasking", mask_ratio=0.75),
    }
    flops = of(cfg, tmp_path, settings=moving, budget=2.0).flops
    assert flops["rising"] == pytest.approx((flops["0.25"] + flops["0.75"]) / 2, rel=0.03)


@pytest.mark.slow
def test_a_config_for_several_devices_is_trained_at_the_rate_of_one(cfg, tmp_path):
    cfg.auto_scale_lr = dict(base_batch_size=14 * 4)
    runner = train(of(cfg, tmp_path).short("random 0.5", 12), work_dir=str(tmp_path / "one"))
    own = {id(parameter) for parameter in runner.model.parameters()}
    rates = {
        group["initial_lr"]
        for group in runner.optim_wrapper.param_groups
        if own & set(map(id, group["params"]))
    }
    assert rates == {cfg.optim_wrapper.optimizer.lr / 4}


def test_the_settings_of_ours_can_be_built(cfg, tmp_path):
    pilot = Pilot(cfg, module.SETTINGS, 8.0, images=8, folder=tmp_path)
    assert pilot.rounds == 3


@thorough_only
@pytest.mark.slow
@pytest.mark.parametrize("label", ["MixMIM", "BEiT v1"])
def test_other_methods_of_one_mask_for_all_images_and_of_two_views(photos, tmp_path, label):
    cfg = small_config(label, photos, masking=dict(type="RandomMasking"))
    cfg.train_cfg.max_epochs = 10
    pilot = of(cfg, tmp_path, budget=2.0)
    result = pilot.train("random 0.5", 10)
    assert result.ruler > 0
