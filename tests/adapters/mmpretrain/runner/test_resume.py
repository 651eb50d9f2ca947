"""Stopping and resuming, in real Runners and in real ``mim train`` processes."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from amn_masking.adapters.mmpretrain.runner import resume as resume_module
from amn_masking.adapters.mmpretrain.runner.resume import (
    SAFE_GLOBALS,
    CheckBeforeLoading,
    load_from_local,
    statistic,
)
from tests.conftest import ROOT

PHOTOS_CONFIG = ROOT / "configs/mmpretrain/mae_amn_vit-tiny_photos.py"
TRACKING = {
    "model.masking.threshold.type": "tracking",
    "model.masking.strength": dict(type="linear", start=-1.0, end=1.0),
}
_runs = itertools.count()


class Stop(Exception):
    """A run that is cut short."""


class StopHook(Hook):
    """Stops at the start of an epoch, or before an iteration."""

    def __init__(self, epoch: int = -1, iteration: int = -1) -> None:
        self.epoch = epoch
        self.iteration = iteration

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == self.epoch:
            raise Stop

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.iteration:
            raise Stop


@HOOKS.register_module()
class DrawHook(Hook):
    """Logs a draw of Python's generator, which nothing else here would notice."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        runner.message_hub.update_scalar("train/draw", random.random())


@HOOKS.register_module()
class StrayHook(Hook):
    """Writes a checkpoint at another moment than CheckpointHook, as save_best may."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == 7:
            runner.save_checkpoint(runner.work_dir, "stray.pth", save_param_scheduler=False)


def small_config(photos, work_dir):
    """The photos config made small: 3 iterations an epoch, 4 epochs, a checkpoint after each."""
    cfg = Config.fromfile(PHOTOS_CONFIG)
    small = {
        "model.backbone.img_size": 32,
        "model.backbone.patch_size": 8,
        "model.backbone.arch": dict(
            embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=48
        ),
        "model.neck.num_patches": 16,
        "model.neck.patch_size": 8,
        "model.neck.embed_dim": 24,
        "model.neck.decoder_embed_dim": 16,
        "model.neck.decoder_num_heads": 2,
        "model.neck.decoder_depth": 1,
        "model.head.patch_size": 8,
        "train_dataloader.batch_size": 14,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "train_dataloader.dataset.data_root": str(photos),
        "train_cfg.max_epochs": 4,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.checkpoint.max_keep_ckpts": -1,
        "default_hooks.logger.interval": 1,
        "custom_hooks": [
            *(dict(type=kind) for kind in ("RandomStateHook", "DrawHook")),
            dict(type="MaskingMetersHook", interval=2),
        ],
        "work_dir": str(work_dir),
        "resume": True,
    }
    cfg.merge_from_dict(small)
    cfg.train_dataloader.dataset.pipeline[1].scale = 32
    return cfg


@pytest.fixture
def config(photos, tmp_path):
    return small_config(photos, tmp_path / "run")


@pytest.fixture(scope="module")
def first_epoch(photos, tmp_path_factory):
    """The work_dir of a run that was stopped after its first epoch."""
    cfg = small_config(photos, tmp_path_factory.mktemp("first_epoch"))
    train_until(cfg, epoch=1)
    return Path(cfg.work_dir)


def make_runner(cfg, **changes):
    # Formatting the config's text takes longer than these runs.
    cfg = Config(cfg.to_dict(), format_python_code=False)
    cfg.merge_from_dict(deepcopy(changes))
    # mmengine keeps its logs by name, for the life of the process.
    cfg.experiment_name = f"resume_{next(_runs)}"
    # Another process would find its generators in another state.
    random.seed(), np.random.seed(None), torch.seed()
    return Runner.from_cfg(cfg)


def train(cfg, **changes):
    runner = make_runner(cfg, **changes)
    runner.train()
    return runner


def train_until(cfg, epoch=-1, iteration=-1, **changes):
    runner = make_runner(cfg, **changes)
    runner.register_hook(StopHook(epoch, iteration))
    with pytest.raises(Stop):
        runner.train()
    return runner


def last_checkpoint(work_dir):
    return load_from_local((Path(work_dir) / "last_checkpoint").read_text(), "cpu")


def assert_same(one, other, where="checkpoint"):
    """Bit for bit, at any depth. What a clock said does not count."""
    assert type(one) is type(other), where
    if isinstance(one, HistoryBuffer):
        for a, b in zip(one.data, other.data, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=where)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if not str(key).endswith("time"):
                assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


PARTS = ("state_dict", "optimizer", "param_schedulers", "random_state", "masking_meters")


def assert_equal_runs(one, other):
    for part in PARTS:
        assert_same(one[part], other[part], part)
    scalars, others = one["message_hub"]["log_scalars"], other["message_hub"]["log_scalars"]
    assert {"train/loss", "train/mask_ratio", "train/strength"} <= scalars.keys()
    assert_same(scalars, others, "log_scalars")
    assert one["meta"]["iter"] == other["meta"]["iter"]


WORKERS = {
    "no workers": {},
    "workers": {"train_dataloader.num_workers": 2},
    "persistent": {
        "train_dataloader.num_workers": 1,
        "train_dataloader.persistent_workers": True,
        # A checkpoint after every second epoch: workers that live on are workers in need of care.
        "default_hooks.checkpoint.interval": 2,
    },
    "a part is predicted": {
        "model.masking.threshold.type": "quantile",
        "model.masking.mask_ratio": 0.75,
        "model.masking.prediction_ratio": 0.25,
    },
    "no seed": {"train_dataloader.num_workers": 1, "randomness": dict(seed=None)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKERS)
def test_a_resumed_run_equals_one_that_was_not_interrupted(kind, config, tmp_path):
    """Weights of both networks, tracking buffers, optimizer, schedules, every logged number."""
    changes = TRACKING | WORKERS[kind]
    if kind == "no seed":
        seed = dict(seed=random.randrange(2**31))  # mmengine would draw two different ones
        train(config, work_dir=str(tmp_path / "whole"), **changes | {"randomness": seed})
        train_until(config, epoch=2, **changes | {"randomness": seed})
    else:
        train(config, work_dir=str(tmp_path / "whole"), **changes)
        train_until(config, epoch=2, **changes)
    assert last_checkpoint(config.work_dir)["meta"]["epoch"] == 2
    resumed = train(config, **changes)
    whole, parts = last_checkpoint(tmp_path / "whole"), last_checkpoint(config.work_dir)
    assert_equal_runs(whole, parts)
    assert kind == "a part is predicted" or whole["state_dict"]["masking.threshold.offset"] != 0
    strength = parts["message_hub"]["log_scalars"]["train/strength"].data[0]
    np.testing.assert_allclose(strength, np.linspace(-1, 1, 13)[:-1], rtol=0, atol=1e-6)
    assert resumed.iter == 12


def test_that_test_can_fail(config, tmp_path):
    """Without the hook a resumed run draws other numbers, and is seen to be another."""
    changes = TRACKING | {"custom_hooks": []}
    train(config, work_dir=str(tmp_path / "whole"), **changes)
    train_until(config, epoch=2, **changes)
    train(config, **changes)
    whole, parts = last_checkpoint(tmp_path / "whole"), last_checkpoint(config.work_dir)
    for part in ("state_dict", "optimizer"):
        with pytest.raises(AssertionError):
            assert_same(whole[part], parts[part])


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_MARK"],)


def plain_mae(path, config):
    """A checkpoint of the stock method's run."""
    changes = {"model.masking": None, "custom_hooks": [], "work_dir": str(path.parent / "stock")}
    train_until(config, epoch=1, **changes)
    shutil.copy(path.parent / "stock" / "epoch_1.pth", path)
    shutil.rmtree(path.parent / "stock")


def cut_off(path, config):
    whole = (path.parent / "epoch_1.pth").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def changed(change):
    def write(path, config):
        checkpoint = torch.load(path.parent / "epoch_1.pth", weights_only=False)
        torch.save(change(checkpoint), path)

    return write


def other_shape(checkpoint):
    weights = checkpoint["state_dict"]
    weights["backbone.cls_token"] = torch.zeros(1, 1, 7)
    return checkpoint


def without(key):
    def change(checkpoint):
        del checkpoint[key]
        return checkpoint

    return change


BAD = {
    "empty": (lambda path, _: path.write_bytes(b""), RuntimeError, "cannot be read.*older"),
    "cut off": (cut_off, RuntimeError, "cannot be read.*leaves it cut off.*older"),
    "text": (lambda path, _: path.write_text("weights"), RuntimeError, "cannot be read"),
    "code": (
        lambda path, _: path.write_bytes(pickle.dumps({"state_dict": Evil()})),
        RuntimeError,
        "cannot be read",
    ),
    "code in torch.save": (
        changed(lambda checkpoint: checkpoint | {"extra": Evil()}),
        RuntimeError,
        r"it holds \S+mkdir, which is neither a tensor nor.*add_safe_globals",
    ),
    "unknown type": (
        changed(lambda checkpoint: checkpoint | {"extra": Path("x")}),
        RuntimeError,
        r"it holds pathlib\..*Path, which is neither a tensor nor",
    ),
    "plain MAE": (
        plain_mae,
        ValueError,
        r"got 6 missing in the file \(masking.*a run without masking.*load_from='.*' and",
    ),
    "weights only": (
        changed(lambda checkpoint: checkpoint["state_dict"]),
        ValueError,
        "expected to hold a run to resume .*got .*backbone.*load_from",
    ),
    "no message hub": (changed(without("message_hub")), ValueError, "expected to hold a run"),
    "a list": (changed(lambda checkpoint: [1, 2]), ValueError, "got list.*load_from"),
    "other shape": (
        changed(other_shape),
        ValueError,
        r"got 1 of another shape \(backbone.cls_token\)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_refused_and_nothing_is_touched(
    kind, config, first_epoch, tmp_path, monkeypatch
):
    write, error, message = BAD[kind]
    monkeypatch.setenv("EVIL_MARK", str(tmp_path / "was_here"))
    work_dir = shutil.copytree(first_epoch, Path(config.work_dir))
    bad = work_dir / "epoch_2.pth"
    write(bad, config)
    (work_dir / "last_checkpoint").write_text(str(bad))
    # Not the folders named after the time: two starts in one second share mmengine's.
    files = [path for path in work_dir.iterdir() if path.is_file() and path.suffix != ".py"]
    files = {path: path.read_bytes() for path in files}
    assert {"epoch_1.pth", "epoch_2.pth", "last_checkpoint"} <= {path.name for path in files}

    runner = make_runner(config)
    with pytest.raises(error, match=r"(?s)epoch_2\.pth.*" + message):
        runner.train()
    before = deepcopy(runner.model.state_dict())
    with pytest.raises(error, match=r"epoch_2\.pth"):
        runner.resume(str(bad))
    assert_same(before, runner.model.state_dict())
    assert runner.iter == 0
    assert not any(isinstance(hook, CheckBeforeLoading) for hook in runner.hooks)
    assert not (tmp_path / "was_here").exists(), "code of the file was run"
    assert {path: path.read_bytes() for path in files} == files
    assert {path.name for path in work_dir.glob("*.pth")} == {"epoch_1.pth", "epoch_2.pth"}


@pytest.mark.parametrize("content", ["", "{work_dir}/epoch_7.pth"])
def test_last_checkpoint_that_names_no_file(content, config, first_epoch):
    """As after a stop while it was written, or with max_keep_ckpts=1 before the next is there."""
    shutil.copytree(first_epoch, config.work_dir)
    pointer = Path(config.work_dir) / "last_checkpoint"
    pointer.write_text(content.format(work_dir=config.work_dir))
    with pytest.raises(FileNotFoundError, match="'last_checkpoint' of its work_dir: write the"):
        train(config)


def test_a_half_written_checkpoint_does_not_ruin_the_run(config, tmp_path):
    """Killed while epoch 2 was saved: last_checkpoint still names epoch 1, the file is replaced."""
    train_until(config, epoch=1)
    cut_off(Path(config.work_dir) / "epoch_2.pth", config)
    train(config)
    train(config, work_dir=str(tmp_path / "whole"))
    assert_equal_runs(last_checkpoint(tmp_path / "whole"), last_checkpoint(config.work_dir))
    assert_same(
        load_from_local(f"{config.work_dir}/epoch_2.pth")["state_dict"],
        load_from_local(f"{tmp_path}/whole/epoch_2.pth")["state_dict"],
    )


def test_resuming_without_the_masking_network(config, first_epoch):
    """Refused from a run that had one; otherwise as for the stock method."""
    masking = dict(type="RandomMasking", _delete_=True)
    config.custom_hooks.pop()  # the meters, which want masks
    shutil.copytree(first_epoch, config.work_dir)
    (Path(config.work_dir) / "last_checkpoint").write_text(f"{config.work_dir}/epoch_1.pth")
    with pytest.raises(
        ValueError, match=r"6 not in the model \(masking.*from a run with a masking network"
    ):
        train(config, **{"model.masking": masking})
    fresh = {"model.masking": masking, "work_dir": config.work_dir + "_2"}
    train_until(config, epoch=1, **fresh)
    assert train(config, **fresh).iter == 12
    stock = deepcopy(config)
    stock.model.type = "MAE"
    del stock.model["masking"]
    fresh["work_dir"] = config.work_dir + "_3"
    train_until(stock, epoch=1, work_dir=fresh["work_dir"])
    assert train(config, **fresh).iter == 12


def test_a_run_without_masking_is_resumed_as_in_stock_mmpretrain(config, monkeypatch):
    """By mmengine's own reader, which loads what fits and warns about the rest."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # since torch 2.6 it needs that
    config.custom_hooks.pop()  # the meters, which want masks
    train_until(config, epoch=1, **{"model.masking": None})
    path = Path(config.work_dir) / "epoch_1.pth"
    checkpoint = torch.load(path)
    del checkpoint["state_dict"]["backbone.cls_token"]
    torch.save(checkpoint, path)
    monkeypatch.setattr(resume_module, "load_from_local", lambda *args: pytest.fail("ours"))
    assert train(config, **{"model.masking": None}).iter == 12


def test_load_from_starts_a_new_run_on_the_weights_of_a_stock_one(config, tmp_path):
    plain_mae(tmp_path / "mae.pth", config)
    runner = make_runner(config, load_from=str(tmp_path / "mae.pth"), resume=False)
    runner.register_hook(StopHook(epoch=0))
    with pytest.raises(Stop):
        runner.train()
    stock = load_from_local(str(tmp_path / "mae.pth"))["state_dict"]
    weights = runner.model.state_dict()
    assert_same(dict(stock), {name: weights[name] for name in stock})
    assert {name.split(".")[0] for name in weights.keys() - stock.keys()} == {"masking"}
    assert runner.iter == 0


def test_load_from_does_not_take_up_the_random_numbers(config, first_epoch):
    start = dict(resume=False)
    load_from = f"{first_epoch}/epoch_1.pth"
    states = [
        torch.get_rng_state()
        for changes in (dict(start, load_from=load_from), start)
        if train_until(config, epoch=0, **changes)
    ]
    assert torch.equal(*states)


def warnings_of(runner):
    logs = "".join(path.read_text() for path in Path(runner.log_dir).glob("*.log"))
    return [line for line in logs.splitlines() if "not bit for bit" in line]


def test_what_cannot_be_equal_is_said_in_the_log(config, tmp_path):
    by_iteration = {
        "default_hooks.checkpoint.by_epoch": False,
        "default_hooks.checkpoint.interval": 2,
    }
    train_until(config, iteration=4, **by_iteration)
    runner = train(config, **by_iteration)
    (line,) = warnings_of(runner)
    assert "written within epoch 2, which begins again with its first batch" in line
    assert runner.iter == 4 + 3 * 3
    assert runner.model.masking.strength == 1.0  # more iterations than planned: the end of it

    for name, changes, message in (
        ("a", {"custom_hooks": []}, "holds no random_state"),
        ("b", {}, None),
    ):
        work_dir = {"work_dir": str(tmp_path / name)}
        train_until(config, epoch=1, **work_dir, **changes)
        lines = warnings_of(train(config, **work_dir))
        assert [message in line for line in lines] == ([True] if message else []), lines


def test_a_loop_by_iterations_goes_on(config):
    loop = {
        "train_cfg": dict(_delete_=True, type="IterBasedTrainLoop", max_iters=6),
        "param_scheduler": [],
        "log_processor.by_epoch": False,
        "train_dataloader.sampler.type": "InfiniteSampler",
        "default_hooks.checkpoint.by_epoch": False,
        "default_hooks.checkpoint.interval": 2,
        "model.masking.strength": TRACKING["model.masking.strength"],
    }
    train_until(config, iteration=4, **loop)
    runner = train(config, **loop)
    (line,) = warnings_of(runner)
    assert "that holds for loops by epoch only" in line
    strength = runner.message_hub.get_scalar("train/strength").data[0]
    np.testing.assert_allclose(strength, np.linspace(-1, 1, 7)[:-1], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def checkpoint_file(photos, tmp_path_factory):
    """A checkpoint as the Runner writes it."""
    history = HistoryBuffer([0.5], [1])
    hub = dict(log_scalars={"loss": history}, runtime_info={"eta": np.float64(3)}, resumed_keys={})
    path = tmp_path_factory.mktemp("checkpoint") / "epoch_1.pth"
    torch.save(dict(state_dict={"w": torch.ones(2)}, message_hub=hub), path)
    return path


@pytest.mark.parametrize("left_out", range(len(SAFE_GLOBALS)))
def test_every_allowed_type_is_needed(left_out, checkpoint_file, monkeypatch):
    load_from_local(str(checkpoint_file))
    fewer = SAFE_GLOBALS[:left_out] + SAFE_GLOBALS[left_out + 1 :]
    monkeypatch.setattr(resume_module, "SAFE_GLOBALS", fewer)
    monkeypatch.setattr(resume_module, "OTHER_NUMPY", ())
    with pytest.raises(RuntimeError, match="cannot be read"):
        load_from_local(str(checkpoint_file))


def test_a_checkpoint_of_the_other_numpy_is_read(checkpoint_file, tmp_path):
    """numpy 2 calls its module numpy._core, numpy 1 numpy.core, and pickles hold the name."""
    mine = "numpy._core" if np.__version__ >= "2" else "numpy.core"
    other = {"numpy._core": "numpy.core", "numpy.core": "numpy._core"}[mine]
    path = tmp_path / "other.pth"
    with zipfile.ZipFile(checkpoint_file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                assert content.count(f"c{mine}.multiarray\n".encode()) == 2
                content = content.replace(f"c{mine}.".encode(), f"c{other}.".encode())
            new.writestr(name, content)
    assert_same(load_from_local(str(path)), load_from_local(str(checkpoint_file)))


def test_the_safety_is_on_again_after_a_load_and_in_a_failed_one(checkpoint_file, tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"bad")
    before = torch.serialization.get_safe_globals()
    for path, error in ((checkpoint_file, None), (tmp_path / "bad.pth", RuntimeError)):
        with pytest.raises(error) if error else nullcontext():
            load_from_local(str(path))
        assert set(torch.serialization.get_safe_globals()) == set(before)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(checkpoint_file, weights_only=True)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(HistoryBuffer, "__init__"), (HistoryBuffer, "__subclasses__"), (dict, "min"), (os, "system")],
)
def test_getattr_of_a_checkpoint_reaches_the_statistics_only(owner, name):
    assert statistic(HistoryBuffer, "mean") is HistoryBuffer.mean
    with pytest.raises(ValueError, match=f"{name!r}.*expected a statistic"):
        statistic(owner, name)


class Lookup:
    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_a_file_gets_no_other_attribute(tmp_path):
    torch.save({"found": Lookup()}, tmp_path / "lookup.pth")
    with pytest.raises(RuntimeError, match=r"'__init__' of .*HistoryBuffer.*expected a statistic"):
        load_from_local(str(tmp_path / "lookup.pth"))


def test_types_that_the_user_allowed_stay_allowed(tmp_path):
    torch.save({"where": Stop("x")}, tmp_path / "mine.pth")
    with pytest.raises(RuntimeError, match=r"it holds [\w.]+\.test_resume\.Stop, which"):
        load_from_local(str(tmp_path / "mine.pth"))
    with torch.serialization.safe_globals([Stop]):
        assert isinstance(load_from_local(str(tmp_path / "mine.pth"))["where"], Stop)


def in_rank(rank, rendezvous, cfg):
    """One of two processes: a run, the same with a stop and a resume."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    stray = [*cfg.custom_hooks, dict(type="StrayHook")]
    train(cfg, work_dir=cfg.work_dir + "_whole", custom_hooks=stray)
    train_until(cfg, epoch=2)
    train(cfg)
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_every_rank_goes_on_with_its_own_random_numbers(config, tmp_path):
    changes = TRACKING | {
        "launcher": "pytorch",
        "model_wrapper_cfg": dict(
            type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
        ),
        "train_dataloader.batch_size": 7,
    }
    config.merge_from_dict(changes)
    multiprocessing.spawn(in_rank, (str(tmp_path / "rendezvous"), config), nprocs=2)
    whole, parts = last_checkpoint(f"{config.work_dir}_whole"), last_checkpoint(config.work_dir)
    assert_equal_runs(whole, parts)
    one, other = whole["random_state"]
    assert not torch.equal(one["torch"], other["torch"])
    assert one["sampler_seed"] == other["sampler_seed"]

    # A checkpoint that is written at another moment has the numbers of the first rank alone.
    stray = load_from_local(f"{config.work_dir}_whole/stray.pth")
    assert len(stray["random_state"]) == 1

    # One process cannot go on with the numbers of two.
    shutil.rmtree(config.work_dir)
    shutil.copytree(f"{config.work_dir}_whole", config.work_dir)
    (Path(config.work_dir) / "last_checkpoint").write_text(f"{config.work_dir}/epoch_3.pth")
    (line,) = warnings_of(train(config, launcher="none"))
    assert "the random numbers of 2 ranks, and now there are 1" in line


def mim_train(work_dir, options):
    """The command of a user, in a process group of its own."""
    command = [str(Path(sys.executable).with_name("mim")), "train", "mmpretrain"]
    command += [str(PHOTOS_CONFIG.relative_to(ROOT)), "--work-dir", str(work_dir)]
    command += ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def logged(work_dir):
    """The logged rows of every start in this folder, in order."""
    paths = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    starts = [path.read_text().splitlines() for path in paths]
    return [[json.loads(line) for line in lines if line.endswith("}")] for lines in starts]


@pytest.mark.slow
def test_kill_9_in_mid_epoch_and_the_same_command_again(photos, tmp_path):
    """The config as it is shipped, workers and pictures included, made small by options only."""
    options = {
        "model.backbone.img_size": 32,
        "model.backbone.arch.num_layers": 1,
        "model.neck.num_patches": 4,
        "model.masking.mask_ratio": 0.5,
        "model.masking.threshold.type": "tracking",
        "train_dataloader.batch_size": 2,
        "train_dataloader.dataset.data_root": str(photos),
        "train_dataloader.dataset.pipeline.1.scale": 32,
        "default_hooks.logger.interval": 1,
        "default_hooks.checkpoint.interval": 1,
        "train_cfg.max_epochs": 3,
        "resume": True,
    }
    killed = tmp_path / "killed"
    process = mim_train(killed, options)
    deadline = time.monotonic() + 300
    # 21 iterations an epoch: the fifth of the second epoch is done, the first is saved.
    while not any(row["step"] >= 26 for rows in logged(killed) for row in rows):
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (first,) = logged(killed)
    assert 26 <= first[-1]["step"] < 42, "not stopped within the second epoch"
    assert not (killed / "epoch_2.pth").exists()

    process = mim_train(killed, options)
    output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    assert "resumed epoch: 1, iter: 21" in output
    assert "not bit for bit" not in output
    second = logged(killed)[1]
    assert [row["step"] for row in second] == list(range(22, 64))
    # The same run without a stop, in this process.
    cfg = Config.fromfile(PHOTOS_CONFIG)
    cfg.merge_from_dict(options)
    train(cfg, work_dir=str(tmp_path / "whole"))
    assert_equal_runs(last_checkpoint(tmp_path / "whole"), last_checkpoint(killed))
    (whole,) = logged(tmp_path / "whole")
    for row, other in zip(whole[21:], second, strict=True):
        assert_same(row, other, "row")
