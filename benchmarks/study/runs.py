"""One run: a setting and a seed in, a row of the CSV out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor

import amn_masking
from benchmarks.study import cifar, measures, photo_measures, training
from benchmarks.study.data import Data, load, split_of
from benchmarks.study.finetune import finetune
from benchmarks.study.settings import PhotoRecipe, Recipe, Setting
from benchmarks.study.store import COLUMNS, Row

ROOT = Path(__file__).resolve().parents[2]


def run(experiment: str, setting: Setting, seed: int) -> Row:
    """Train, measure, and say with what."""
    begin = time.perf_counter()
    code = commit()  # before training, in which it may change
    torch.set_num_threads(1)
    quiet()
    recipe, device = setting.recipe, training.device()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, for features outside autocast
    data = data_of(recipe, seed)
    numbers: dict[str, Any] = {"steps": 0, "seconds": 0.0}
    probe_c: float | None = None
    if setting.encoder == "pixels":

        def encode(pixels: Tensor) -> Tensor:
            return pixels.flatten(1)
    else:
        model = training.build(setting, seed).to(device)

        def encode(pixels: Tensor) -> Tensor:
            return training.features(model, pixels)

    if setting.encoder == "trained":
        probe_c = recipe.probe_c
        started, used = time.perf_counter(), time.process_time()
        numbers["steps"] = training.train(model, data.train, setting, seed)
        numbers["seconds"] = time.perf_counter() - started
        numbers["cpu_seconds"] = time.process_time() - used
        numbers |= getattr(model, "ruled", {})
        numbers |= measures.mask_metrics(model, data.test, recipe.patch, seed)
        numbers |= measures.step_flops(model, data.train.centre()[: recipe.batch])
    if isinstance(recipe, PhotoRecipe):
        numbers |= photo_measures.feature_metrics(encode, data, probe_c, seed)
    else:
        numbers |= measures.feature_metrics(
            lambda pixels: encode(pixels).cpu().numpy(), data, recipe.patch, probe_c, seed
        )
    if setting.encoder != "pixels":
        numbers["finetune"] = finetune(model, data, seed)  # the last, because it trains the model
    numbers["seconds_in_all"] = time.perf_counter() - begin
    row = dict.fromkeys(COLUMNS, "") | {name: f"{value:.6g}" for name, value in numbers.items()}
    return row | {
        "experiment": experiment,
        "data": recipe.data,
        "strategy": setting.strategy,
        "seed": str(seed),
        "split": split_of(seed),
        "settings": setting.to_json(),
        "software": software(data.source),
        "hardware": hardware(),
        "commit": code,
    }


def data_of(recipe: Recipe, seed: int) -> Data:
    """The pictures of a recipe for one seed, on the study's device."""
    if isinstance(recipe, PhotoRecipe):
        return cifar.load(recipe, seed, training.device())
    return load(recipe.data, seed).to(training.device())


def quiet() -> None:
    """mmengine would print each weight that it initialises."""
    MMLogger.get_current_instance().setLevel("ERROR")
    warnings.filterwarnings("ignore", module="mmengine|mmpretrain|torch.utils")


@cache
def software(source: str = "") -> str:
    """Names and versions, as JSON; and where the pictures are from, if anywhere."""
    names = ("torch", "mmengine", "mmpretrain", "numpy", "scikit-learn")
    versions = {"amn_masking": amn_masking.__version__, "python": platform.python_version()}
    versions |= {name: version(name).split("+")[0] for name in names}
    return json.dumps(versions | ({"pictures": source} if source else {}))


@cache
def hardware() -> str:
    """The kind of GPU; without one that of processor, and that one thread of it was used."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    parts = [platform.machine(), f"{os.cpu_count()} cores", model, "1 thread a run"]
    return ", ".join(part for part in parts if part)


@cache
def commit() -> str:
    """The commit that is checked out, with a + if files that git knows have changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"]).returncode
    except OSError:
        return ""
    return head.stdout.decode().strip() + ("+" if changed else "")
