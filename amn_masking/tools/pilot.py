"""Which masks for these images? A pilot for who would rather know before the training.

    python -m amn_masking.tools.pilot CONFIG [--labels LINEAR_CONFIG] [--budget 0.1]

CONFIG is a pre-training config of mmpretrain whose method takes ``masking``. Some settings train on
its images for a small share of its training, the better half of them for twice as long, and so on:
successive halving (Jamieson, Talwalkar, arXiv:1502.07943), each round at equal FLOPs. Every run has
the whole of the config's learning-rate schedule and of the masks' schedules, squeezed into it.

What is better: with labels, the accuracy of nearest neighbours; without, the error under random
masks at 0.5 of images that were not trained on, the ruler. How far to trust either is measured in
docs/results/learning.md.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from amn_masking.adapters.mmpretrain.mixin import MaskedMethod, images_of
from amn_masking.adapters.mmpretrain.runner.pictures_hook import same_random_numbers
from amn_masking.patches import masked_mean
from amn_masking.tools.checkpoints import backbone_weights
from amn_masking.tools.held_out import hold_out
from amn_masking.tools.knn import evaluate, with_encoder
from amn_masking.tools.pilot_results import Result, best, line_of, table
from amn_masking.tools.short_run import short_run
from amn_masking.tools.training_flops import training_flops

RULER = dict(type="RandomMasking", mask_ratio=0.5)
LEAST_ITERATIONS = 10

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


class Pilot:
    """Runs of one config under several masks, one after the other, in this process.

    Args:
        cfg: mmengine ``Config`` of a pre-training.
        settings: configs of masking strategies, by a name of their own.
        budget: of all trainings together, as a share of what the config's own costs, by FLOPs.
        labels: ``Config`` of a linear probe, as :mod:`amn_masking.tools.knn` takes; None: the
            ruler decides.
        images: about how many of the training images are held out for the ruler.
        folder: of the runs; what is finished there is not run again.

    Raises:
        ValueError: fewer than two settings, one that does not suit the method, a method that takes
            no masks, too few images, labels that do not suit the encoder, or a budget in which a
            run would have fewer than ten iterations.
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
        check_settings(settings)
        if not 0 < budget < math.inf:
            raise ValueError(
                f"budget expected a share of the config's own training, as 0.1, got {budget}"
            )
        self.cfg, self.labels, self.folder = deepcopy(cfg), labels, Path(folder)
        self.settings = {name: dict(masking) for name, masking in settings.items()}
        self.count, self.held = hold_out(self.cfg, images)
        self.kept = self.count - sum(len(images_of(batch["inputs"])) for batch in self.held)
        self.flops = {name: self._flops_of(name) for name in self.settings}
        self.rounds = max(1, math.ceil(math.log2(len(self.settings))))
        own = training_flops(self._build(self.cfg.model.get("masking")), self.held[0])
        whole = own * self._planned()
        self.per_round = budget * whole / self.rounds
        dearest = max(self.flops.values()) * len(self.settings)
        if self.per_round < LEAST_ITERATIONS * dearest:
            need = math.ceil(LEAST_ITERATIONS * dearest * self.rounds / whole * 1000) / 1000
            raise ValueError(
                f"a budget of {budget:g} leaves a run of the first round fewer than "
                f"{LEAST_ITERATIONS} iterations; set --budget {need:g} or more, or try fewer "
                "settings"
            )
        if labels is not None:
            self._check_labels()

    def run(self, say: Any = print) -> dict[str, list[Result]]:
        """All rounds; the results of each setting, one for each round that it was in.

        Raises:
            ValueError: all runs of a round diverged.
        """
        results: dict[str, list[Result]] = {name: [] for name in self.settings}
        alive = list(self.settings)
        say(f"{len(alive)} settings, {self.rounds} rounds; the better half of each goes on")
        for number in range(self.rounds):
            for name in alive:
                result = self.train(name, self.iterations(name, len(alive)))
                results[name].append(result)
                say(f"round {number + 1}/{self.rounds}  {name:40} {line_of(result)}")
            alive = sorted(alive, key=lambda name: results[name][-1].rank)
            if results[alive[0]][-1].rank == math.inf:
                raise ValueError("every run of this round diverged; lower the learning rate")
            better = alive[: (len(alive) + 1) // 2]
            alive = [name for name in better if results[name][-1].rank < math.inf]
        return results

    def iterations(self, name: str, settings: int) -> int:
        """Of a run of a round with so many settings."""
        return int(self.per_round / settings / self.flops[name])

    def train(self, name: str, iterations: int) -> Result:
        """One run, or what an earlier one of the same has left; NaN where it diverged."""
        cfg = self.short(name, iterations)
        text = f"{self.count} {cfg.dump()} {'' if self.labels is None else self.labels.dump()}"
        folder = self.folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        done = folder / "result.json"
        if done.exists():
            return Result(**json.loads(done.read_text()))
        cfg.work_dir, cfg.experiment_name = str(folder), f"pilot-{uuid.uuid4().hex}"
        try:
            runner = Runner.from_cfg(cfg)
            runner.train()
            result = Result(iterations, self.ruler(runner), self._accuracy(runner, folder))
        except ValueError as error:
            if "not finite" not in str(error):
                raise
            nothing = None if self.labels is None else math.nan
            result = Result(iterations, math.nan, nothing)
        runner = None
        gc.collect()  # models hold themselves, and Python does not see a GPU's memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        partial = done.with_suffix(".partial")
        partial.write_text(json.dumps(vars(result)))
        partial.replace(done)
        return result

    def short(self, name: str, iterations: int) -> Any:
        """The config of a run."""
        return short_run(self.cfg, self.settings[name], iterations, self._planned(), self._epoch())

    @torch.no_grad()
    def ruler(self, runner: Any) -> float:
        """The error under random masks at 0.5 of the held-out images, by the method's own criterion
        and under the same masks for all.
        """
        model = runner.model.eval()
        total, count = 0.0, 0
        with masked_by(model, RULER):
            for number, batch in enumerate(self.held):
                data = model.data_preprocessor(deepcopy(batch), True)
                images = images_of(data["inputs"])
                with same_random_numbers(number), runner.optim_wrapper.optim_context(model):
                    mask = model.make_mask(images, data["data_samples"])
                    error = model.error_under(mask, **data).float()
                total += float(masked_mean(error, mask.predicted.expand_as(error))) * len(images)
                count += len(images)
        return total / count

    def _epoch(self) -> int:
        """Iterations of an epoch."""
        loader = self.cfg.train_dataloader
        whole, rest = divmod(self.kept, loader.batch_size)
        return max(1, whole + (rest > 0 and not loader.get("drop_last", False)))

    def _planned(self) -> int:
        """Iterations of the config's own training, in one process."""
        plan = self.cfg.train_cfg
        if "max_epochs" in plan:
            return int(plan.max_epochs) * self._epoch()
        return int(plan.max_iters)

    def _flops_of(self, name: str) -> float:
        try:
            return training_flops(self._build(self.settings[name]), self.held[0])
        except (ValueError, TypeError) as error:
            raise ValueError(f"the setting {name!r} does not suit this config: {error}") from error

    def _build(self, masking: Mapping[str, Any] | None) -> Any:
        config = deepcopy(self.cfg.model)
        config.masking = None if masking is None else dict(masking)
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            try:
                model = MODELS.build(config)
            except TypeError as error:
                if "masking" not in str(error):
                    raise
                model = None
        if not isinstance(model, MaskedMethod):
            raise ValueError(
                "expected a config of a method that takes masks, model.type='amn_masking.MAE' or "
                f"another, got {self.cfg.model.get('type')!r}; see docs/mmpretrain.md"
            )
        return model.train()

    def _check_labels(self) -> None:
        """Before the first training and not after it: do encoder and images fit?"""
        state = {"state_dict": self._build(None).state_dict()}
        labels = deepcopy(self.labels)
        with_encoder(labels, backbone_weights(state), "the encoder of CONFIG", "cpu")
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            for loader in (labels.train_dataloader, labels.val_dataloader):
                DATASETS.build(loader.dataset)

    def _accuracy(self, runner: Any, folder: Path) -> float | None:
        """Of nearest neighbours on the labelled images; None if there are none."""
        if self.labels is None:
            return None
        path = folder / "for_knn.pth"
        device = next(runner.model.parameters()).device
        try:
            torch.save({"state_dict": runner.model.state_dict()}, path)
            return float(evaluate(deepcopy(self.labels), path, device=device)["accuracy"])
        finally:
            path.unlink(missing_ok=True)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for what are not at least two configs by name."""
    for name, masking in settings.items():
        if not isinstance(masking, Mapping) or not isinstance(masking.get("type"), str):
            raise ValueError(
                f"the setting {name!r} expected dict(type='<name of a strategy>', ...), got "
                f"{masking!r}"
            )
    if len(settings) < 2:
        raise ValueError(f"a pilot compares at least two settings, got {sorted(settings)}")


@contextmanager
def masked_by(model: MaskedMethod, masking: Mapping[str, Any]) -> Iterator[None]:
    """Within, the model masks by another strategy."""
    own = model.masking
    model.masking = model.build_masking(masking)
    try:
        yield
    finally:
        model.masking = own


def main(arguments: list[str] | None = None) -> None:
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
        "--budget", type=float, default=0.1,
        help="of all trainings, as a share of CONFIG's own FLOPs (0.1)",
    )  # fmt: skip
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
        results = pilot.run(lambda line: print(line, flush=True))
    except (ValueError, TypeError, OSError, ImportError, KeyError) as error:
        parser.exit(1, f"error: {error}\n")
    name = best(results)
    masking = pilot.settings[name]
    if cfg.model.get("masking"):
        masking = {"_delete_": True, **masking}  # mmengine would put it into the base's
    print(f"\n{table(results)}\n\nbest: {name}. In a config with _base_ = {args.config!r}:\n")
    print(Config({"model": {"masking": masking}}).pretty_text)
    print(
        "One run each: a small difference may be one of seeds."
        if labels is not None
        else "By the error under random masks at 0.5, which favours random masks at about 0.5; "
        "--labels compares strategies. One run each: a small difference may be one of seeds."
    )


if __name__ == "__main__":
    main()
