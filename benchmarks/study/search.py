"""A search over the settings of the learned mask: optuna's TPE, pruned by medians, on tuning seeds.

It is resumed without a memory of its own: the sampler is seeded and told the same numbers in the
same order, so it asks for the same settings again, whose rows are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks.study import settings, store
from benchmarks.study.experiments import CHOSEN, RATIOS
from benchmarks.study.pool import csv_of, run_all, workers
from benchmarks.study.settings import RECIPES, Recipe, Setting, random_masks

# The seeds of a trial, a round at a time: after the first a trial below the median of those before
# it ends.
ROUNDS = ((0, 1), (2, 3))
UNPRUNED = 6  # trials, the first
STRENGTHS = {name: value for name, value in settings.STRENGTHS.items() if name != "frozen"}
STRENGTHS["warm-up"] = settings.WARM_UP
ESTIMATORS = ("straight_through", "gumbel", "inclusion", "score_function", "ranking")


def first(recipe: Recipe) -> list[dict[str, Any]]:
    """What is worth a look before the sampler has seen anything."""
    return [
        dict(
            estimator="straight_through", strength=strength, reward="error", threshold="quantile",
            random_share=0.0, temperature=1.0, downsample=max(1, recipe.patch // 3),
            mask_ratio=ratio,
        )
        for strength, ratio in (("adversarial", 0.25), ("cooperative", 0.75), ("curriculum", 0.5))
    ]  # fmt: skip


def suggest(trial: optuna.Trial, recipe: Recipe) -> Setting:
    """The setting of a trial."""
    strength = trial.suggest_categorical("strength", list(STRENGTHS))
    masking: dict[str, Any] = dict(
        type="AdversarialMasking",
        strength=STRENGTHS[strength],
        estimator=dict(type=trial.suggest_categorical("estimator", ESTIMATORS)),
        reward=trial.suggest_categorical("reward", ["error", "variance_normalised"]),
        temperature=trial.suggest_categorical("temperature", [0.5, 1.0, 2.0, 4.0]),
    )
    sides = sorted({1, max(1, recipe.patch // 3), recipe.patch})
    downsample = trial.suggest_categorical("downsample", sides)
    masking["network"] = dict(channels=16, downsample=downsample)
    # Changing sign, no target is right; and free counts have no log-probability with a share.
    held = strength == "curriculum" or masking["estimator"]["type"] == "score_function"
    kind = "quantile"
    if not held:
        kind = trial.suggest_categorical("threshold", ["quantile", "difficulty"])
    if kind == "quantile":
        masking["mask_ratio"] = trial.suggest_categorical("mask_ratio", RATIOS)
        masking["random_share"] = trial.suggest_categorical("random_share", [0.0, 0.25, 0.5])
    else:
        gain = trial.suggest_float("target_gain", 1.05, 1.6, log=True)
        masking["threshold"] = dict(
            type=kind, target_gain=round(gain if strength != "cooperative" else 1 / gain, 3)
        )
        masking["mask_ratio"] = 0.5
        masking["random_share"] = trial.suggest_categorical("least_share", [0.25, 0.5])
    return Setting(describe(strength, masking), recipe, masking)


def describe(strength: str, masking: Mapping[str, Any]) -> str:
    """A trial in a line."""
    threshold = masking.get("threshold")
    held = (
        f"ratio {masking['mask_ratio']:g}"
        if threshold is None
        else f"gain {threshold['target_gain']:g}"
    )
    return (
        f"{strength}, {masking['estimator']['type']}, {held}, {masking['reward']}, "
        f"random share {masking['random_share']:g}, temperature {masking['temperature']:g}, "
        f"downsample {masking['network']['downsample']}"
    )


def search(data: str, trials: int, jobs: int, results: Path) -> None:
    """Run it, after random masks at their best ratio.

    Args:
        data: one of ``RECIPES``.
        trials: the budget; 4 runs each, or 2 where pruned.
        jobs: processes.
        results: folder of the CSV files.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recipe = RECIPES[data]
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=UNPRUNED),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED),
    )
    for parameters in first(recipe):
        study.enqueue_trial(parameters)
    with workers(jobs) as pool:

        def worths(setting: Setting, seeds: tuple[int, ...]) -> list[float]:
            run_all("search", [(setting, seed) for seed in seeds], pool, results)
            known = {store.key(row): row for row in store.read(csv_of(results, "search"))}
            return [store.worth(known[setting.to_json(), str(seed)]) for seed in seeds]

        baseline = random_masks(recipe, CHOSEN[data]["random"])
        worths(baseline, tuple(seed for part in ROUNDS for seed in part))
        for _ in range(trials):
            trial = study.ask()
            setting = suggest(trial, recipe)
            found: list[float] = []
            pruned = False
            for step, seeds in enumerate(ROUNDS):
                found += worths(setting, seeds)
                trial.report(float(np.mean(found)), step)
                pruned = step + 1 < len(ROUNDS) and trial.should_prune()
                if pruned:
                    break
            if pruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, float(np.mean(found)))
            end = "pruned" if pruned else "whole"
            print(f"trial {trial.number}: {np.mean(found):.4f}, {end}: {setting.strategy}")
