"""A config of mmpretrain for a short run that has the whole of its schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

OF_TIME = ("begin", "end", "T_max", "total_steps", "milestones", "periods", "step_size")
# Kinds of which these are all that counts time; without the end of their names, LR or Momentum.
KNOWN = (
    "Constant", "CosineAnnealing", "CosineRestart", "Exponential", "Linear", "MultiStep",
    "OneCycle", "Poly", "Step",
)  # fmt: skip
# Pictures and numbers nobody looks at; and an average of weights over more steps than there are.
LEFT_OUT = ("MaskingPicturesHook", "MaskingMetersHook", "RandomStateHook", "EMAHook")


def short_run(
    cfg: Any, masking: Mapping[str, Any], iterations: int, planned: int, epoch: int
) -> Any:
    """The config with other masks, for so many iterations, without validation and checkpoints.

    Args:
        cfg: mmengine ``Config`` of a pre-training.
        masking: of the model.
        iterations: of the short run.
        planned: of the config's own.
        epoch: iterations of an epoch.

    Raises:
        ValueError: a scheduler of a kind that cannot be squeezed.
    """
    cfg = deepcopy(cfg)
    cfg.model.masking = dict(masking)
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations)
    for part in ("cfg", "dataloader", "evaluator"):
        cfg[f"val_{part}"] = cfg[f"test_{part}"] = None
    cfg.param_scheduler = squeezed(cfg.get("param_scheduler"), iterations / planned, epoch)
    if cfg.train_dataloader.get("sampler", {}).get("type") == "DefaultSampler":
        # The loop by iterations rests two seconds before it begins another one anew.
        cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.default_hooks = {**cfg.get("default_hooks", {}), "checkpoint": None}
    cfg.custom_hooks = [
        hook for hook in cfg.get("custom_hooks") or [] if kind_of(hook) not in LEFT_OUT
    ]
    if cfg.get("auto_scale_lr"):
        cfg.auto_scale_lr.enable = True  # this is one process, whatever the config is for
    seed = (cfg.get("randomness") or {}).get("seed")
    cfg.randomness = {**(cfg.get("randomness") or {}), "seed": 0 if seed is None else seed}
    cfg.log_processor = dict(by_epoch=False)
    cfg.visualizer = dict(type="Visualizer", vis_backends=[])
    cfg.log_level, cfg.resume = "ERROR", False
    return cfg


def kind_of(config: Mapping[str, Any]) -> str:
    """The name of what a config describes, without its scope."""
    kind = config.get("type")
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def squeezed(
    schedulers: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None, share: float, epoch: int
) -> list[dict[str, Any]] | None:
    """A config's parameter schedulers in a share of the training, counted in iterations.

    Args:
        schedulers: one, several, or None, as mmengine takes them.
        share: of the training.
        epoch: iterations of one.

    Raises:
        ValueError: a kind that is not known, or schedulers by optimizer.
    """
    if schedulers is None:
        return None
    several = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    return [one for given in several if (one := squeezed_one(given, share, epoch)) is not None]


def squeezed_one(given: Mapping[str, Any], share: float, epoch: int) -> dict[str, Any] | None:
    """One of them; None for one that would be over before the first iteration is."""
    kind = kind_of(given)
    for ending in ("LR", "Momentum", "ParamScheduler"):
        kind = kind.removesuffix(ending)
    if kind not in KNOWN:
        raise ValueError(
            f"the pilot squeezes a config's schedules into short runs and knows those of mmengine, "
            f"{', '.join(f'{name}LR' for name in KNOWN)}; got param_scheduler {dict(given)}"
        )
    one = {key: value for key, value in given.items() if value is not None}
    factor = share * (epoch if one.pop("by_epoch", True) else 1)
    one.pop("convert_to_iter_based", None)
    for key in OF_TIME:
        if isinstance(one.get(key), (list, tuple)):
            one[key] = [max(1, round(value * factor)) for value in one[key]]
        elif key in one:
            one[key] = round(one[key] * factor)
            if key in ("step_size", "T_max", "total_steps"):
                one[key] = max(1, one[key])
    if kind == "Exponential":
        one["gamma"] = one["gamma"] ** (1 / factor)
    if one.get("end", math.inf) <= one.get("begin", 0):
        return None
    return {**one, "by_epoch": False}
