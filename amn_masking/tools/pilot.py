"""Which masks for these images? A pilot for who would rather know before the training.

    python -m amn_masking.tools.pilot CONFIG [--labels LINEAR_CONFIG] [--budget 0.1]

CONFIG is a pre-training config of mmpretrain whose method takes ``masking``. Some settings train on
its images for a small share of its training, the better half of them for twice as long, and so on:
successive halving (Jamieson, Talwalkar, arXiv:1502.07943), each round at equal FLOPs. Every run has
the whole of the config's learning-rate schedule and of the masks' schedules, squeezed into it.

What is better: with labels, the accuracy of nearest neighbours; without, the error under random
masks at 0.5 of images that were not trained on. The latter finds the ratio of a strategy and
favours random masks; how far to trust either is measured in docs/pilot.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from amn_masking.adapters.mmpretrain.mixin import images_of
from amn_masking.adapters.mmpretrain.valid import valid_of
from amn_masking.patches import masked_mean
from amn_masking.strategies import RandomMasking

RULER_RATIO = 0.5
LEAST_ITERATIONS = 10
OF_TIME = ("begin", "end", "T_max", "total_steps", "milestones", "periods", "step_size")

SHARE = dict(type="linear", start=1.0, end=0.5)
SETTINGS: dict[str, dict[str, Any]] = {
    "random 0.375": dict(type="RandomMasking", mask_ratio=0.375),
    "random 0.5": dict(type="RandomMasking", mask_ratio=0.5),
    "random 0.75": dict(type="RandomMasking", mask_ratio=0.75),
    "adversarial 0.25": dict(type="AdversarialMasking", mask_ratio=0.25),
    "adversarial 0.375": dict(type="AdversarialMasking", mask_ratio=0.375),
    "adversarial 0.75, random share 1 to 0.5": dict(
        type="AdversarialMasking", mask_ratio=0.75, random_share=SHARE
    ),
    "cooperative 0.75": dict(
        type="AdversarialMasking", mask_ratio=0.75, strength=-1.0, loss=dict(score_weighted=False)
    ),
    "cooperative 0.875": dict(
        type="AdversarialMasking", mask_ratio=0.875, strength=-1.0, loss=dict(score_weighted=False)
    ),
}


@dataclass(frozen=True)
class Result:
    """Of one run of one setting.

    Attributes:
        iterations: of the training.
        ruler: the masked error under random masks at 0.5, on images that were not trained on.
        accuracy: of nearest neighbours, in [0, 1]; None without labels.
    """

    iterations: int
    ruler: float
    accuracy: float | None = None

    @property
    def rank(self) -> float:
        """Smaller is better; a run that diverged is the worst."""
        value = self.ruler if self.accuracy is None else -self.accuracy
        return value if math.isfinite(value) else math.inf


class Pilot:
    """Runs of one config under several masks.

    Args:
        cfg: mmengine ``Config`` of a pre-training.
        settings: configs of masking strategies, by a name of their own.
        budget: of all runs together, as a share of what the config's own training costs, by
            FLOPs.
        labels: ``Config`` of a linear probe, as :mod:`amn_masking.tools.knn` takes; None: the
            ruler decides.
        images: about how many of the training images are held out for the ruler.
        folder: of the runs; what is finished there is not run again.

    Raises:
        ValueError: fewer than two settings, a method that takes no masks, too few images, or a
            budget in which a run would have fewer than ten iterations.
    """

    def __init__(
        self,
        cfg: Any,
        settings: Mapping[str, Mapping[str, Any]],
        budget: float,
        labels: Any = None,
        images: int = 256,
        folder: str | Path = "work_dirs/pilot",
    ) -> None:
        from mmengine.registry import DATASETS, DefaultScope

        if len(settings) < 2:
            raise ValueError(f"a pilot compares at least two settings, got {sorted(settings)}")
        if not 0 < budget <= 10:
            raise ValueError(
                f"budget expected a share of the config's own training, as 0.1, got {budget}"
            )
        self.cfg, self.labels, self.folder = deepcopy(cfg), labels, Path(folder)
        self.settings = {name: dict(masking) for name, masking in settings.items()}
        if not str(cfg.model.get("type", "")).startswith("amn_masking."):
            raise ValueError(
                f"expected a config of a method that takes masks, model.type='amn_masking.MAE' or "
                f"another, got {cfg.model.get('type')!r}; see docs/mmpretrain.md"
            )
        dataset = self.cfg.train_dataloader.dataset
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            count = len(DATASETS.build(dataset))
            if not 1 <= images <= count // 2:
                raise ValueError(
                    f"{images} images to hold out expected at most half of the training images, of "
                    f"which there are {count}; set --images"
                )
            fold = dict(
                type="KFoldDataset", dataset=dataset, num_splits=max(2, count // images), seed=0
            )
            self.cfg.train_dataloader.dataset = fold
            self.held = self._batches({**fold, "test_mode": True})
        self.kept = count - sum(len(images_of(batch["inputs"])) for batch in self.held)
        self.flops = {name: self._flops_of(name) for name in self.settings}
        self.rounds = max(1, math.ceil(math.log2(len(self.settings))))
        whole = self._flops(self.cfg.model.get("masking")) * self._planned()
        self.per_round = budget * whole / self.rounds
        dearest = max(self.flops.values()) * len(self.settings)
        if self.per_round < LEAST_ITERATIONS * dearest:
            need = math.ceil(LEAST_ITERATIONS * dearest * self.rounds / whole * 1000) / 1000
            raise ValueError(
                f"a budget of {budget:g} leaves a run of the first round fewer than "
                f"{LEAST_ITERATIONS} iterations; set --budget {need:g} or more, or try fewer "
                "settings"
            )

    def run(self, say: Any = print) -> dict[str, list[Result]]:
        """All rounds; the results of each setting, one for each round that it was in."""
        results: dict[str, list[Result]] = {name: [] for name in self.settings}
        alive = list(self.settings)
        for number in range(self.rounds):
            for name in alive:
                result = self.train(name, self.iterations(name, len(alive)))
                results[name].append(result)
                say(f"round {number + 1}/{self.rounds}  {name:40} {line_of(result)}")
            alive = sorted(alive, key=lambda name: results[name][-1].rank)
            alive = alive[: (len(alive) + 1) // 2]
        return results

    def iterations(self, name: str, settings: int) -> int:
        """Of a run of a round with so many settings."""
        return int(self.per_round / settings / self.flops[name])

    def train(self, name: str, iterations: int) -> Result:
        """One run, or what an earlier one of the same has left."""
        from mmengine.runner import Runner

        cfg = self._short(self.settings[name], iterations)
        key = hashlib.sha256(
            (cfg.dump() + repr(self.labels and self.labels.dump())).encode()
        ).hexdigest()[:12]
        folder = self.folder / key
        done = folder / "result.json"
        if done.exists():
            return Result(**json.loads(done.read_text()))
        cfg.work_dir, cfg.experiment_name = str(folder), f"pilot-{uuid.uuid4().hex}"
        runner = Runner.from_cfg(cfg)
        runner.train()
        result = Result(iterations, self.ruler(runner), self._accuracy(runner, folder))
        partial = done.with_suffix(".partial")
        partial.write_text(json.dumps(vars(result)))
        partial.replace(done)
        return result

    @torch.no_grad()
    def ruler(self, runner: Any) -> float:
        """The error under random masks at 0.5 of the held-out images, the same masks for all."""
        model = runner.model.eval()
        masking = RandomMasking(RULER_RATIO, patch_size=model.masking.patch_size)
        total, count = 0.0, 0.0
        for number, batch in enumerate(self.held):
            data = model.data_preprocessor(deepcopy(batch), True)
            images = images_of(data["inputs"])
            generator = torch.Generator(images.device).manual_seed(number)
            mask = masking(images, generator, valid_of(data["data_samples"], images))
            with runner.optim_wrapper.optim_context(model):
                error = model.error_under(mask, **data)
            total += float(masked_mean(error.float(), mask.predicted)) * len(images)
            count += len(images)
        return total / count

    def _short(self, masking: Mapping[str, Any], iterations: int) -> Any:
        """The config with these masks, for so many iterations."""
        cfg = deepcopy(self.cfg)
        cfg.model.masking = dict(masking)
        cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations)
        for part in ("cfg", "dataloader", "evaluator"):
            cfg[f"val_{part}"] = cfg[f"test_{part}"] = None
        cfg.param_scheduler = squeezed(
            cfg.get("param_scheduler"), iterations / self._planned(), self._epoch()
        )
        cfg.default_hooks = {**cfg.get("default_hooks", {}), "checkpoint": None}
        cfg.custom_hooks = [
            hook
            for hook in cfg.get("custom_hooks") or []
            if not str(hook.get("type")).startswith("amn_masking.")
        ]
        cfg.log_processor = dict(by_epoch=False)
        cfg.visualizer = dict(type="Visualizer", vis_backends=[])
        cfg.log_level, cfg.resume = "ERROR", False
        return cfg

    def _epoch(self) -> int:
        """Iterations of an epoch."""
        loader = self.cfg.train_dataloader
        whole, rest = divmod(self.kept, loader.batch_size)
        return max(1, whole + (rest > 0 and not loader.get("drop_last", False)))

    def _planned(self) -> int:
        """Iterations of the config's own training."""
        plan = self.cfg.train_cfg
        if "max_epochs" in plan:
            return int(plan.max_epochs) * self._epoch()
        return int(plan.max_iters)

    def _batches(self, dataset: Mapping[str, Any]) -> list[Any]:
        """The images of a dataset as the training sees them, each cropped once for all runs."""
        from mmengine.runner import Runner

        from amn_masking.adapters.mmpretrain.runner.pictures_hook import same_random_numbers

        loader = deepcopy(self.cfg.train_dataloader)
        loader.update(num_workers=0, persistent_workers=False, drop_last=False, dataset=dataset)
        loader.pop("batch_sampler", None)
        loader.sampler = dict(type="DefaultSampler", shuffle=False)
        with same_random_numbers(seed=0):
            return list(Runner.build_dataloader(loader))

    def _flops_of(self, name: str) -> float:
        try:
            return self._flops(self.settings[name])
        except (ValueError, TypeError) as error:
            raise ValueError(f"the setting {name!r} does not suit this config: {error}") from error

    def _flops(self, masking: Mapping[str, Any] | None) -> float:
        """Of a training step, forward and backward, per image, by torch's counter."""
        from mmengine.registry import DefaultScope
        from mmpretrain.registry import MODELS

        config = deepcopy(self.cfg.model)
        config.masking = None if masking is None else dict(masking)
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            model = MODELS.build(config).train()
        data = model.data_preprocessor(deepcopy(self.held[0]), True)
        few = 4
        inputs, samples = data["inputs"], data["data_samples"]
        views = [x[:few] for x in inputs] if isinstance(inputs, (list, tuple)) else inputs[:few]
        with FlopCounterMode(display=False) as counter:
            losses = model.loss(views, samples[:few] if samples else samples)
            model.parse_losses(losses)[0].backward()
        return counter.get_total_flops() / min(few, len(images_of(inputs)))

    def _accuracy(self, runner: Any, folder: Path) -> float | None:
        """Of nearest neighbours on the labelled images; None if there are none."""
        if self.labels is None:
            return None
        from amn_masking.tools.knn import evaluate

        name = "for_knn.pth"
        runner.save_checkpoint(str(folder), name, save_optimizer=False, save_param_scheduler=False)
        device = next(runner.model.parameters()).device
        found = evaluate(deepcopy(self.labels), folder / name, device=device)["accuracy"]
        (folder / name).unlink()
        return float(found)


def squeezed(
    schedulers: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None, share: float, epoch: int
) -> list[dict[str, Any]] | None:
    """A config's parameter schedulers in a share of the training, counted in iterations.

    Args:
        schedulers: as mmengine takes them.
        share: of the training.
        epoch: iterations of one.
    """
    if schedulers is None:
        return None
    found = []
    for one in [schedulers] if isinstance(schedulers, Mapping) else schedulers:
        one = dict(one)
        unit = epoch if one.pop("by_epoch", True) else 1
        one.pop("convert_to_iter_based", None)
        for key in OF_TIME:
            if one.get(key) is None:
                continue
            if isinstance(one[key], (list, tuple)):
                one[key] = [max(1, round(value * unit * share)) for value in one[key]]
            else:
                one[key] = round(one[key] * unit * share)
        begin = one.get("begin", 0)
        if one.get("end", math.inf) <= begin or one.get("T_max", 1) < 1:
            continue  # a warm-up of less than an iteration
        found.append({**one, "by_epoch": False})
    return found


def line_of(result: Result) -> str:
    """A result in words."""
    line = f"{result.iterations:6d} iterations  ruler {result.ruler:.4f}"
    return line if result.accuracy is None else f"{line}  k-NN {result.accuracy:.4f}"


def table(results: Mapping[str, Sequence[Result]]) -> str:
    """A line for each setting, the best first: of what came furthest the better."""
    rounds = max(map(len, results.values()))
    order = sorted(results, key=lambda name: (-len(results[name]), results[name][-1].rank))
    labelled = any(result.accuracy is not None for found in results.values() for result in found)
    width = max(map(len, results))
    head = f"{'k-NN' if labelled else 'ruler'} after round"
    lines = [f"{head:{width}}" + "".join(f"{number + 1:>10}" for number in range(rounds))]
    for name in order:
        values = (r.ruler if r.accuracy is None else r.accuracy for r in results[name])
        lines.append(f"{name:{width}}" + "".join(f"{value:10.4f}" for value in values))
    return "\n".join(lines)


def best(results: Mapping[str, Sequence[Result]]) -> str:
    """The name of the setting that won."""
    return min(results, key=lambda name: (-len(results[name]), results[name][-1].rank))


def main(arguments: list[str] | None = None) -> None:
    from mmengine.config import Config, DictAction

    parser = argparse.ArgumentParser(
        prog="python -m amn_masking.tools.pilot", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("config", metavar="CONFIG", help="of the pre-training")
    parser.add_argument(
        "--labels", metavar="LINEAR_CONFIG",
        help="config of a linear probe, whose labelled images decide; without it the ruler does",
    )  # fmt: skip
    parser.add_argument(
        "--settings", metavar="FILE",
        help="a config file with settings = {name: dict(type=..., ...)}; without it eight of ours",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=0.1, help="of all runs, as a share of the training (0.1)"
    )
    parser.add_argument("--images", type=int, default=256, help="to hold out for the ruler (256)")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/pilot"))
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE",
        help="of CONFIG, as for mim train",
    )  # fmt: skip
    parser.add_argument(
        "--labels-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE",
        help="of LINEAR_CONFIG",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        labels = None
        if args.labels is not None:
            labels = Config.fromfile(args.labels)
            labels.merge_from_dict(args.labels_options)
        settings = SETTINGS
        if args.settings is not None:
            settings = Config.fromfile(args.settings).get("settings")
            if not isinstance(settings, Mapping):
                raise ValueError(
                    f"{args.settings} expected to hold settings = {{name: dict(type=..., ...)}}"
                )
        pilot = Pilot(cfg, settings, args.budget, labels, args.images, args.work_dir)
        results = pilot.run()
    except (ValueError, TypeError, OSError, ImportError, KeyError) as error:
        parser.exit(1, f"error: {error}\n")
    name = best(results)
    print(f"\n{table(results)}\n\nbest: {name}. To train with it:\n")
    print(Config({"model": {"masking": pilot.settings[name]}}).pretty_text)
    if labels is None:
        print(
            "Chosen by the error under random masks, which finds a strategy's mask ratio and "
            "favours random masks; --labels compares strategies."
        )


if __name__ == "__main__":
    main()
