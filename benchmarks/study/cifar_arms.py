"""What the study runs on CIFAR-10: a recipe for a GPU and a smaller one for a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.study.settings import CURRICULUM, PhotoRecipe, Setting, network, ratio_of

GPU = PhotoRecipe(
    "cifar", side=32, channels=3, patch=4, width=192, layers=4, heads=4, decoder_width=96,
    decoder_layers=1, epochs=40, batch=512, lr=2e-3, norm_pix=True, precision="bfloat16",
)  # fmt: skip
CPU = PhotoRecipe(
    "cifar_small", side=32, channels=3, patch=4, width=128, layers=4, heads=4, decoder_width=64,
    decoder_layers=1, epochs=20, batch=128, lr=2e-3, norm_pix=True, images=20_000, queries=5_000,
)  # fmt: skip

SEEN = 0.25


def masked(kind: str, ratio: float, **options: Any) -> dict[str, Any]:
    return dict(type=kind, mask_ratio=ratio, **options)


def arms(recipe: PhotoRecipe, ratio: float) -> dict[str, Setting]:
    """Every strategy at one mask ratio, by its name in tables."""
    net = network(recipe.patch // 2)  # as the shipped configs pool: half a patch
    adversarial = masked("AdversarialMasking", ratio, strength=1.0, **net)
    configs: dict[str, Mapping[str, Any]] = {
        "random": masked("RandomMasking", ratio),
        "block": masked("BlockMasking", ratio, min_patches=4),
        "color noise, red": masked("ColorNoiseMasking", ratio, color="red"),
        "color noise, green": masked("ColorNoiseMasking", ratio, color="green"),
        "hard patches": masked("HardPatchMasking", ratio, **net),
        "adversarial": adversarial,
        "adversarial, random share 0.5": {**adversarial, "random_share": 0.5},
        "adversarial, random share 1 to 0.5": {
            **adversarial, "random_share": dict(type="linear", start=1.0, end=0.5),
        },
        "curriculum": {**adversarial, "strength": CURRICULUM},
        "cooperative": {**adversarial, "strength": -1.0},
        "shuffled": dict(type="ShuffledMasking", masking=adversarial),
        "oracle": masked("OracleMasking", ratio),
    }  # fmt: skip
    found = {name: Setting(name, recipe, masking) for name, masking in configs.items()}
    apart = replace(recipe, seen=SEEN)
    for name, kind in (("learned", "adversarial"), ("random", "random")):
        strategy = f"predicted, {name}"
        found[strategy] = Setting(strategy, apart, found[kind].masking)
    return found


# FLOPs of a whole training step, forward and backward, decoder and masking network included, over
# those of random masks at 0.75; by torch's counter, of both recipes. A test compares.
STEP = {0.25: 2.54, 0.375: 2.14, 0.5: 1.755, 0.75: 1.0}
NETWORK = {"cifar": 0.018, "cifar_small": 0.039}  # more with a masking network
APART = 0.885  # of 0.25 seen and 0.25 predicted
ORACLE = {0.25: 5.9, 0.75: 2.33}


def step_flops(setting: Setting) -> float:
    """How many times the FLOPs of random masks at 0.75 a step takes."""
    ratio = ratio_of(setting.masking)
    if setting.strategy == "oracle":
        return ORACLE[ratio]
    step = APART if setting.strategy.startswith("predicted") else STEP[ratio]
    learned = "network" in json.dumps(setting.masking)
    return step + NETWORK[setting.recipe.data] * learned


def at_equal_flops(setting: Setting) -> Setting:
    """The same, for as many epochs as cost what those of random masks at 0.75 do."""
    epochs = round(setting.recipe.epochs / step_flops(setting))
    return replace(setting, recipe=replace(setting.recipe, epochs=epochs))


RATIOS = (0.25, 0.375, 0.5, 0.75)
# What is tried on tuning seeds. The last four are what they are because of their ratio.
TUNED: dict[str, tuple[float, ...]] = {
    "random": RATIOS,
    "adversarial": RATIOS,
    "block": (0.25, 0.5, 0.75),
    "color noise, red": (0.5, 0.75),
    "color noise, green": (0.5, 0.75),
    "hard patches": (0.25, 0.5, 0.75),
    "cooperative": (0.75,),
    "curriculum": (0.75,),
    "adversarial, random share 0.5": (0.75,),
    "adversarial, random share 1 to 0.5": (0.75,),
    "predicted, learned": (0.25,),
    "predicted, random": (0.25,),
}
# The best of them at equal FLOPs, by the probe.
CHOSEN: dict[str, float] = {
    "random": 0.75,
    "adversarial": 0.25,
    "block": 0.5,
    "color noise, red": 0.5,
    "color noise, green": 0.75,
    "hard patches": 0.75,
}


def tuning(recipe: PhotoRecipe) -> list[Setting]:
    """Every strategy at its ratios, at equal FLOPs."""
    return [
        at_equal_flops(arms(recipe, ratio)[name])
        for name, ratios in TUNED.items()
        for ratio in ratios
    ]


def report(recipe: PhotoRecipe) -> list[Setting]:
    """Random and adversarial masks at all ratios, the others at their best; the control that moves
    the adversary's masks to other images; and the oracle.
    """
    ratios = {name: TUNED[name] for name in TUNED if name not in CHOSEN}
    ratios |= {name: (ratio,) for name, ratio in CHOSEN.items()}
    ratios |= dict.fromkeys(("random", "adversarial"), RATIOS)
    ratios |= {"shuffled": (CHOSEN["adversarial"],), "oracle": (0.25,)}
    return [
        at_equal_flops(arms(recipe, ratio)[name])
        for name, tried in ratios.items()
        for ratio in tried
    ]


def lengths(recipe: PhotoRecipe) -> list[Setting]:
    """Does the recipe say something? Baselines; random masks for half, all and twice the epochs."""
    settings = [Setting(name, recipe, encoder=name) for name in ("pixels", "untrained")]
    for factor, words in ((0.5, ", half as long"), (1, ""), (2, ", twice as long")):
        for ratio in (0.5, 0.75):
            setting = at_equal_flops(arms(recipe, ratio)["random"])
            epochs = round(factor * setting.recipe.epochs)
            settings.append(
                replace(
                    setting,
                    strategy=f"random{words}",
                    recipe=replace(setting.recipe, epochs=epochs),
                )
            )
    return settings


def cifar() -> list[Setting]:
    return report(GPU) + report(CPU)


def cifar_tuning() -> list[Setting]:
    return tuning(GPU) + tuning(CPU)


def cifar_lengths() -> list[Setting]:
    return lengths(GPU) + lengths(CPU)


def cifar_epochs() -> list[Setting]:
    """Random and adversarial masks at equal epochs."""
    return [
        arms(recipe, ratio)[name]
        for recipe in (GPU, CPU)
        for name in ("random", "adversarial")
        for ratio in RATIOS
        if ratio != 0.75
    ]
