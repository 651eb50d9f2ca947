"""What the study runs: experiments as lists of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.study import cifar_arms
from benchmarks.study.settings import (
    DRAWN,
    RECIPES,
    RULED,
    RULED_LESS_TREND,
    SETS,
    STRENGTHS,
    UNWEIGHTED,
    USABLE,
    WARM_UP,
    Recipe,
    Setting,
    learned,
    network,
    random_masks,
    ratio_of,
)


def recipe() -> list[Setting]:
    """Is a random-mask MAE better than no training at all, on each data set?"""
    return [
        setting
        for data in SETS
        for setting in (
            Setting("pixels", RECIPES[data], encoder="pixels"),
            Setting("untrained", RECIPES[data], encoder="untrained"),
            random_masks(RECIPES[data], 0.5),
        )
    ]


# Other recipes, with random masks at 0.5: what the size and the length of the training do.
TRIED: dict[str, dict[str, dict[str, Any]]] = {
    "shapes": {
        "36 patches": dict(patch=6),
        "lr 0.0015": dict(lr=1.5e-3),
        "12 epochs": dict(epochs=12),
    },
    "digits": {
        "50 epochs": dict(epochs=50),
        "lr 0.008": dict(lr=8e-3),
        "lr 0.002": dict(lr=2e-3),
        "16 patches": dict(patch=9),
        "16 patches, 50 epochs": dict(patch=9, epochs=50),
    },
    "clutter": {"50 epochs": dict(epochs=50), "16 patches, 50 epochs": dict(patch=9, epochs=50)},
}


def tried() -> list[Setting]:
    """The recipes beside those that are used."""
    return [
        replace(random_masks(replace(RECIPES[data], **changes), 0.5), strategy=f"random, {name}")
        for data, variants in TRIED.items()
        for name, changes in variants.items()
    ]


RATIOS = (0.125, 0.25, 0.375, 0.5, 0.75, 0.875)
OTHER_RATIOS = {"shapes": (0.25, 0.375, 0.5, 0.75), "digits": (0.25, 0.5, 0.75, 0.875)}
# Of the others, by data: a run of digits takes three times as long; and only there is what varies
# least the background.
NOT_RUN: dict[str, tuple[str, ...]] = {
    "shapes": ("least variance",),
    "digits": (
        "color noise", "hard patches", "attention", "attention, hint", "shuffled", "random ratio",
    ),
}  # fmt: skip


# What is not run on report seeds: of shapes the others that are below random masks on the tuning
# seeds, or below another of their kind; of digits, whose runs take three times as long, all that is
# far below them; and variants of a strategy that is no better than random masks itself.
SCREENED: dict[str, tuple[str, ...]] = {
    "shapes": (
        "attention", "attention, hint", "random ratio", "color noise", "cooperative, unweighted",
        "cooperative, shuffled",
    ),
    "digits": ("curriculum", "block", "color noise, red", "oracle", "adversarial, unweighted"),
}  # fmt: skip


def strengths(recipe: Recipe, ratio: float) -> list[Setting]:
    """Random masks, and learned ones of each strength."""
    return [
        random_masks(recipe, ratio),
        *(learned(recipe, ratio, strength) for strength in STRENGTHS),
    ]


def grid() -> list[Setting]:
    """Strength x ratio."""
    return [
        setting
        for data in USABLE
        for ratio in RATIOS
        for setting in strengths(RECIPES[data], ratio)
    ]


def grid16() -> list[Setting]:
    """The same on digits with the recipe before this one, of 16 patches and 50 epochs."""
    recipe = replace(RECIPES["digits"], patch=9, epochs=50)
    return [setting for ratio in (0.25, 0.5, 0.75) for setting in strengths(recipe, ratio)]


def others() -> list[Setting]:
    """The other strategies and the controls, each at several ratios."""
    settings = []
    for data in USABLE:
        recipe = RECIPES[data]
        for ratio in OTHER_RATIOS[data]:
            adversarial = dict(learned(recipe, ratio, "adversarial").masking or {})
            hard = dict(type="HardPatchMasking", network=adversarial["network"])
            plain = dict(type="RandomMasking", mask_ratio=ratio)
            around = (ratio - 0.2, min(ratio + 0.2, 0.9))  # of 16 patches at least one is seen
            configs: dict[str, dict[str, Any]] = {
                "block": dict(type="BlockMasking", min_patches=2),
                "color noise": dict(type="ColorNoiseMasking", color="green"),
                "color noise, red": dict(type="ColorNoiseMasking", color="red"),
                "hard patches": hard,
                "attention": dict(type="AttentionMasking"),
                "attention, hint": dict(type="AttentionMasking", hint_share=0.3),
                "least variance": dict(type="LeastVarianceMasking"),
                "oracle": dict(type="OracleMasking"),
                "shuffled": dict(type="ShuffledMasking", masking=adversarial),
                "random ratio": dict(type="RandomRatioMasking", masking=plain, ratio_range=around),
            }
            for name, config in configs.items():
                if name in NOT_RUN[data]:
                    continue
                if "masking" not in config:
                    config["mask_ratio"] = ratio
                settings.append(Setting(name, recipe, config))
    return settings


# The mask ratio that is best on the tuning seeds, by data and strategy; a test compares.
CHOSEN: dict[str, dict[str, float]] = {
    "shapes": {
        "random": 0.375,
        "cooperative": 0.25,
        "frozen": 0.375,
        "adversarial": 0.375,
        "curriculum": 0.375,
        "block": 0.5,
        "color noise": 0.375,
        "color noise, red": 0.375,
        "hard patches": 0.375,
        "attention": 0.75,
        "attention, hint": 0.5,
        "oracle": 0.25,
        "shuffled": 0.375,
        "random ratio": 0.25,
    },
    "digits": {
        "random": 0.5,
        "cooperative": 0.875,
        "frozen": 0.25,
        "adversarial": 0.25,
        "curriculum": 0.75,
        "block": 0.25,
        "color noise, red": 0.25,
        "least variance": 0.875,
        "oracle": 0.25,
    },
    "digits8": {"random": 0.5},
}
# Epochs in which a strategy at its ratio costs what random masks at theirs do: in FLOPs of the
# encoder, forward and backward, and in time of the whole step. By study_steps.csv; a test compares.
# In time only what one would choose between, and the oracle; on digits no FLOPs, for cooperative
# masks at 0.875 cost so few that equal ones would be 90 epochs.
EQUAL_FLOPS: dict[str, dict[str, int]] = {
    "shapes": {
        "cooperative": 22,
        "random": 25,
        "frozen": 25,
        "adversarial": 25,
        "curriculum": 25,
        "oracle": 9,
        "color noise, red": 25,
        "hard patches": 25,
        "shuffled": 25,
        "block": 30,
        "adversarial, unweighted": 25,
        "found by search": 22,
    },
    "digits": {},
}
EQUAL_TIME: dict[str, dict[str, int]] = {
    "shapes": {
        "random": 25,
        "adversarial": 21,
        "oracle": 10,
        "color noise, red": 25,
        "block": 28,
        "found by search": 19,
    },
    "digits": {"random": 25, "cooperative": 30},
}


# What the search found, by data: the strategy of its best trial. A test compares.
FOUND: dict[str, dict[str, Any]] = {
    "shapes": dict(
        type="AdversarialMasking",
        strength=1.0,
        estimator=dict(type="straight_through"),
        reward="error",
        temperature=1.0,
        network=dict(channels=16, downsample=3),
        mask_ratio=0.25,
        random_share=0.0,
    )
}


def report() -> list[Setting]:
    """Each strategy at its own best ratio, what the search found, and the adversary's and the
    cooperator's masks without their weights in the loss, the cooperator's also on other images.
    """
    chosen = [
        setting
        for setting in grid() + others()
        if CHOSEN[setting.recipe.data].get(setting.strategy) == ratio_of(setting.masking)
    ]
    unweighted = [
        replace(
            setting,
            strategy=f"{setting.strategy}, unweighted",
            masking={**(setting.masking or {}), **UNWEIGHTED},
        )
        for setting in chosen
        if setting.strategy in ("adversarial", "cooperative")
    ]
    # Of cooperative masks where they are best, how much is where and not what?
    shuffled = [
        replace(
            setting,
            strategy="cooperative, shuffled",
            masking=dict(type="ShuffledMasking", masking=setting.masking),
        )
        for setting in chosen
        if setting.strategy == "cooperative"
    ]
    found = [Setting("found by search", RECIPES[data], masking) for data, masking in FOUND.items()]
    return [
        setting
        for setting in chosen + unweighted + shuffled + found
        if setting.strategy not in SCREENED[setting.recipe.data]
    ]


def within(epochs: Mapping[str, Mapping[str, int]]) -> list[Setting]:
    """The same, each for so many epochs."""
    return [
        replace(setting, recipe=replace(setting.recipe, epochs=count))
        for setting in report()
        if (count := epochs[setting.recipe.data].get(setting.strategy)) is not None
    ]


def equal_flops() -> list[Setting]:
    """At equal FLOPs of the encoder."""
    return within(EQUAL_FLOPS)


def equal_time() -> list[Setting]:
    """At equal processor time."""
    return within(EQUAL_TIME)


# Twice the epochs: does the lead of what is best on these very seeds last?
LASTING = {"shapes": ("random", "adversarial"), "digits": ("random", "cooperative, unweighted")}


def long() -> list[Setting]:
    """Random masks and the best learned ones, trained for twice as long."""
    return [
        replace(setting, recipe=replace(setting.recipe, epochs=2 * setting.recipe.epochs))
        for setting in report()
        if setting.strategy in LASTING[setting.recipe.data]
    ]


# What each guard of the adversary is there for: taken away, or another one added.
ABLATIONS: dict[str, dict[str, Any]] = {
    "": dict(),
    "no random share": dict(random_share=0.0),
    "random share 0.5": dict(random_share=0.5),
    "free logits": dict(standardise=False),
    "free logits, entropy 0.1": dict(standardise=False, entropy_weight=0.1),
    "free logits, entropy 1": dict(standardise=False, entropy_weight=1.0),
    "no noise": dict(estimator=dict(type="straight_through", noise=0.0)),
    "temperature 0.25": dict(temperature=0.25),
    "temperature 4": dict(temperature=4.0),
    "variance-normalised": dict(reward="variance_normalised"),
    "warm-up": dict(strength=WARM_UP),
    "difficulty 1.2": dict(threshold=dict(type="difficulty", target_gain=1.2)),
    "unweighted": UNWEIGHTED,
    "gumbel": dict(estimator=dict(type="gumbel")),
    "score function": dict(estimator=dict(type="score_function")),
    "ranking": dict(estimator=dict(type="ranking")),
    # The specification's loop, read naively.
    "no guard at all": dict(
        random_share=0.0,
        standardise=False,
        estimator=dict(type="straight_through", noise=0.0),
    ),
}


def ablation() -> list[Setting]:
    """The adversary at one ratio, with one thing changed at a time."""
    settings = []
    for data in USABLE:
        recipe, ratio = RECIPES[data], 0.5
        settings.append(random_masks(recipe, ratio))
        plain = learned(recipe, ratio, "adversarial", random_share=0.25)
        sides = {f"downsample {d}": network(d) for d in (1, recipe.patch)}
        for name, options in {**ABLATIONS, **sides}.items():
            masking = {**(plain.masking or {}), **options}
            strategy = f"adversarial, {name}" if name else "adversarial"
            settings.append(replace(plain, strategy=strategy, masking=masking))
        settings.append(learned(recipe, ratio, "cooperative", random_share=0.25))
        settings += [
            replace(plain, strategy=f"adversarial, lr x {factor:g}", lr_mult=factor)
            for factor in (0.1, 10.0)
        ]
    return settings


def estimator() -> list[Setting]:
    """Which estimator: the adversary where it is best."""
    return [
        replace(
            learned(RECIPES["shapes"], 0.375, "adversarial", estimator=dict(type=kind)),
            strategy=f"adversarial, {kind}",
        )
        for kind in ("straight_through", "inclusion")
    ]


def half_random() -> list[Setting]:
    """Random masks at 0.75, and learned ones of that ratio of which a share is drawn at random: the
    schedule that loses least on photographs, and constants, which need no progress.
    """
    shares = {"1 to 0.5": dict(type="linear", start=1.0, end=0.5), "0.75": 0.75, "0.9": 0.9}
    settings = []
    for data in USABLE:
        settings.append(random_masks(RECIPES[data], 0.75))
        for words, share in shares.items():
            options = dict(random_share=share, estimator=dict(type="inclusion"))
            one = learned(RECIPES[data], 0.75, "adversarial", **options)
            settings.append(replace(one, strategy=f"adversarial, random share {words}"))
    return settings


SEEN, PREDICTED = (0.25, 0.375, 0.5), (0.125, 0.25, 0.375)


def seen_predicted() -> list[Setting]:
    """How much is seen and how much is predicted, at random and learned, beside stock masks. For
    tuning seeds: it decides what is tried on photographs.
    """
    inclusion = dict(type="inclusion")
    settings = []
    for data in USABLE:
        recipe = RECIPES[data]
        settings.append(random_masks(recipe, 0.75))
        for seen in SEEN:
            for predicted in PREDICTED:
                sets = dict(mask_ratio=1 - seen, prediction_ratio=predicted)
                at_random = dict(type="RandomMasking", **sets)
                settings.append(Setting(f"random, seen {seen:g}", recipe, at_random))
                signs = ("adversarial", "cooperative") if predicted == 0.25 else ("adversarial",)
                for sign in signs:
                    options = dict(prediction_ratio=predicted, estimator=inclusion)
                    one = learned(recipe, 1 - seen, sign, **options)
                    settings.append(replace(one, strategy=f"{sign}, seen {seen:g}"))
    return settings


SETTLE = 300  # steps, three times what the critics' mean looks back
LEARNING = {
    "adversarial": "AdversarialMasking", "progress": "ProgressMasking", "regret": "RegretMasking",
    "progress since a snapshot": "SnapshotProgressMasking",
    "regret of an average": "AveragedRegretMasking",
}  # fmt: skip


def learning() -> list[Setting]:
    """Rewards for what can still be learned, at fixed ratios and at what the ruler chooses."""
    settings = []
    for data in USABLE:
        recipe = RECIPES[data]
        common = {**network(max(1, recipe.patch // 3)), **UNWEIGHTED}
        settings.append(random_masks(recipe, 0.375))
        for ratio in (0.25, 0.5, 0.75):
            settings.append(random_masks(recipe, ratio))
            for name, kind in LEARNING.items():
                masking = dict(type=kind, mask_ratio=ratio, **common)
                if kind == "AdversarialMasking":
                    masking |= dict(random_share=0.0, estimator=dict(type="inclusion"))
                settings.append(Setting(f"{name}, inclusion", recipe, masking))
        settled = dict(type="ProgressMasking", settle=SETTLE, **common)
        settings += [
            Setting("progress, settled", recipe, {**settled, "mask_ratio": ratio})
            for ratio in (0.5, 0.75)
        ]
        random, progress = random_masks(recipe, 0.5).masking, {**settled, "mask_ratio": 0.5}
        for name, masking, choice in (
            (RULED, random, {}),
            (RULED_LESS_TREND, random, dict(choice="less trend")),
            (DRAWN, random, dict(choice="drawn")),
            ("progress, by ruler less trend", progress, dict(choice="less trend")),
        ):
            by_ruler = dict(type="RulerMasking", masking=masking, **choice)
            settings.append(Setting(name, recipe, by_ruler))
    return settings


def noise() -> list[Setting]:
    """Masks that hide the shapes' noise first, or last, and else choose at random."""
    recipe = RECIPES["shapes"]
    return [
        Setting(name, recipe, dict(type="NoiseMasking", mask_ratio=ratio, hide=hide))
        for ratio in (0.25, 0.5)
        for name, hide in (("noise first", True), ("noise last", False))
    ]


def learning_report() -> list[Setting]:
    """Of what sets itself the reward that lost least on digits, and the ratio by the ruler beside
    ratios that are drawn, for as many epochs as everything else.
    """
    return [
        setting
        for setting in learning()
        if setting.strategy in (RULED, RULED_LESS_TREND, DRAWN)
        or (setting.strategy == "progress, inclusion" and ratio_of(setting.masking) == 0.5)
    ]


PILOT_EPOCHS = 3  # of 25
PILOTED = ("random", "cooperative", "adversarial")


def pilot() -> list[Setting]:
    """Short trainings with what the grid trains in full: does what is best in them stay so?"""
    return [
        replace(setting, recipe=replace(setting.recipe, epochs=PILOT_EPOCHS))
        for setting in grid()
        if setting.strategy in PILOTED
    ]


CROSSED = (
    "random", "block", "color noise, red", "cooperative", "adversarial", "hard patches", "oracle",
)  # fmt: skip


def matrix(data: str) -> list[Setting]:
    """The strategies of the cross-mask matrix that this data has, at one ratio for all."""
    at_half = {
        s.strategy: s
        for s in grid() + others()
        if s.recipe == RECIPES[data] and ratio_of(s.masking) == 0.5
    }
    return [at_half[name] for name in CROSSED if name in at_half]


def smoke() -> list[Setting]:
    """The smallest of the grid, to be run again anywhere."""
    recipe = RECIPES["shapes"]
    return [random_masks(recipe, 0.75), learned(recipe, 0.75, "cooperative")]


def tiny() -> list[Setting]:
    """Two strategies for two epochs: for tests, it shows nothing."""
    recipe = RECIPES["digits8"]
    return [
        Setting("pixels", recipe, encoder="pixels"),
        random_masks(recipe, 0.75),
        learned(recipe, 0.75, "adversarial"),
    ]


EXPERIMENTS = {
    "recipe": recipe, "tried": tried, "grid": grid, "others": others, "ablation": ablation,
    "smoke": smoke, "report": report, "flops": equal_flops, "time": equal_time, "long": long,
    "grid16": grid16, "tiny": tiny, "estimator": estimator, "half_random": half_random,
    "seen_predicted": seen_predicted, "learning": learning, "pilot": pilot,
    "learning_report": learning_report, "noise": noise,
    "cifar_recipe": cifar_arms.cifar_recipe, "cifar_lengths": cifar_arms.cifar_lengths,
    "cifar_tuning": cifar_arms.cifar_tuning, "cifar": cifar_arms.cifar,
    "cifar_cpu": cifar_arms.cifar_cpu, "cifar_time": cifar_arms.cifar_time,
}  # fmt: skip
