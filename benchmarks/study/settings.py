"""What a run of the study is: a recipe, and a setting of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a masked autoencoder is trained and probed on one data set.

    Attributes:
        data: one of ``data.DATA``.
        side: of the images, in pixels.
        channels: of the images.
        patch: side of a patch, in pixels.
        width, layers, heads: of the encoder.
        decoder_width, decoder_layers: of the decoder.
        epochs: over the training images.
        batch: images.
        lr: at its highest, of AdamW.
        norm_pix: whether each patch of the target is normalised by itself.
        probe_c: inverse strength of the linear probe's regularisation.
    """

    data: str
    side: int
    channels: int
    patch: int
    width: int = 96
    layers: int = 2
    heads: int = 4
    decoder_width: int = 48
    decoder_layers: int = 1
    epochs: int = 60
    batch: int = 64
    lr: float = 1e-3
    norm_pix: bool = False
    probe_c: float = 0.1


@dataclass(frozen=True)
class PhotoRecipe(Recipe):
    """The same on photographs: training crops are mirrored at random, too.

    Attributes:
        images: to train on; of more the seed draws.
        queries: to test on; the same.
        precision: of the training steps: ``'float32'``, on a CPU; ``'tf32'`` or ``'bfloat16'`` by
            autocast, on a GPU.
    """

    images: int = 50_000
    queries: int = 10_000
    precision: str = "float32"


RECIPES = {
    "digits": Recipe("digits", side=36, channels=1, patch=6, epochs=25, lr=4e-3),
    "clutter": Recipe("clutter", side=36, channels=3, patch=6, epochs=25, lr=4e-3),
    "shapes": Recipe("shapes", side=36, channels=3, patch=9, epochs=25, lr=5e-3),
    "digits8": Recipe("digits8", side=8, channels=1, patch=2, width=16, layers=1, epochs=2),
}
SETS = ("digits", "clutter", "shapes")
USABLE = ("digits", "shapes")  # where a random-mask MAE beats raw pixels and the untrained encoder


def ratio_of(masking: Mapping[str, Any] | None) -> float | None:
    """The share that a strategy's config, or that of the one that it wraps, predicts: its mask
    ratio unless it says another. None without, and where the counts are free or the ruler moves
    them, so that it is only where they begin.
    """
    while masking is not None and "masking" in masking and masking["type"] != "RulerMasking":
        masking = masking["masking"]
    if masking is None or "threshold" in masking or masking["type"] == "RulerMasking":
        return None
    return masking.get("prediction_ratio", masking.get("mask_ratio"))


@dataclass(frozen=True)
class Setting:
    """One cell of an experiment; with a seed, one run.

    Attributes:
        strategy: its name in tables.
        recipe: how the autoencoder is trained.
        masking: the config of a masking strategy; None where nothing is trained.
        encoder: ``'trained'``; ``'untrained'``, as it was initialised; or ``'pixels'``, none.
        lr_mult: factor on the learning rate for the masking network.
    """

    strategy: str
    recipe: Recipe
    masking: Mapping[str, Any] | None = field(default=None)
    encoder: str = "trained"
    lr_mult: float = 1.0

    def to_json(self) -> str:
        """All of it, in one order."""
        return json.dumps(asdict(self), sort_keys=True)


def random_masks(recipe: Recipe, ratio: float) -> Setting:
    return Setting("random", recipe, dict(type="RandomMasking", mask_ratio=ratio))


CURRICULUM = dict(type="linear", start=-1.0, end=1.0)
WARM_UP = dict(type="linear", start=0.0, end=1.0)
STRENGTHS: dict[str, Any] = {
    "cooperative": -1.0, "frozen": 0.0, "adversarial": 1.0, "curriculum": CURRICULUM,
}  # fmt: skip


# With fixed counts the adversarial loss is then the reconstruction loss once more: the autoencoder
# is trained as under random masks, and only the masks are the adversary's.
UNWEIGHTED = dict(loss=dict(score_weighted=False))
# Masks whose ratio follows the ruler, see learning.RulerHook, and their control.
RULED, RULED_LESS_TREND = "random, by ruler", "random, by ruler less trend"
DRAWN = "random, ratio drawn"


def network(downsample: int) -> dict[str, Any]:
    """The masking network of the study, as options of AdversarialMasking."""
    return dict(network=dict(channels=16, downsample=downsample))


def learned(recipe: Recipe, ratio: float, strength: str, **options: Any) -> Setting:
    masking = dict(
        type="AdversarialMasking",
        mask_ratio=ratio,
        strength=STRENGTHS[strength],
        # The default when these were run.
        estimator=dict(type="straight_through"),
        random_share=0.0,  # said in all settings of the study, whatever the default is
        # At the full resolution this network would cost more than the small autoencoder.
        **network(max(1, recipe.patch // 3)),
    )
    return Setting(strength, recipe, {**masking, **options})
