"""mmpretrain: its masked-image-modelling methods with any masking strategy.

Importing this module registers the methods under the ``amn_masking`` scope (``type=
'amn_masking.MAE'``), and strategies, loss and hook both there and, unprefixed, in mmpretrain's
own registry, because dicts that a ``mmpretrain::`` base brings in are looked up there. Nothing
else of the process is changed until a method is built with ``masking=``; see :mod:`.runner`.
"""

from __future__ import annotations

import logging

try:
    from mmengine.logging import print_log
    from mmengine.registry import Registry
    from mmpretrain.registry import HOOKS as MMPRETRAIN_HOOKS
    from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
except ImportError as error:
    raise ImportError(
        "the mmpretrain adapter expected mmengine, mmcv and mmpretrain, but one cannot be imported "
        f"({error}). Install amn-masking with its extra [mmpretrain], as in pip install -e "
        "'.[mmpretrain]', or with [onedl] for the maintained forks (one of the two per environment)"
    ) from error

from amn_masking import strategies
from amn_masking.adapters.mmpretrain.methods.backbone_masks import (
    EVA,
    MAE,
    MFF,
    MILAN,
    MixMIM,
    SparK,
)
from amn_masking.adapters.mmpretrain.methods.sample_masks import CAE, BEiT, MaskFeat, SimMIM, iTPN
from amn_masking.adapters.mmpretrain.mixin import MaskedMethod
from amn_masking.adapters.mmpretrain.runner import install
from amn_masking.adapters.mmpretrain.runner.meters_hook import MaskingMetersHook
from amn_masking.adapters.mmpretrain.runner.model_index import register_models
from amn_masking.adapters.mmpretrain.runner.pictures_hook import MaskingPicturesHook
from amn_masking.adapters.mmpretrain.runner.random_state import RandomStateHook
from amn_masking.losses import CombinedAdversarialLoss
from amn_masking.registry import HOOKS, MODELS

__all__ = [
    "CAE",
    "EVA",
    "MAE",
    "METHODS",
    "MFF",
    "MILAN",
    "MMPRETRAIN_MODELS",
    "BEiT",
    "MaskFeat",
    "MaskingMetersHook",
    "MaskingPicturesHook",
    "MixMIM",
    "RandomStateHook",
    "SimMIM",
    "SparK",
    "iTPN",
]

# By the name that mmpretrain gives them.
METHODS = {
    cls.__name__: cls
    for cls in (MAE, EVA, MFF, MILAN, SimMIM, MaskFeat, BEiT, CAE, iTPN, SparK, MixMIM)
}
STRATEGIES = [getattr(strategies, name) for name in strategies.__all__ if name != "MaskingStrategy"]


def offer(registry: Registry, cls: type) -> None:
    """Register ``cls`` by its bare name in mmpretrain's registry, unless another has the name."""
    taken = registry.module_dict.get(cls.__name__, cls)
    if taken is cls:
        registry.register_module(module=cls, force=True)
    else:
        print_log(
            f"{cls.__name__!r} is {taken.__module__}.{cls.__name__} in mmpretrain's registry, and "
            f"stays so; write type='amn_masking.{cls.__name__}' for the one of amn_masking, or "
            "register yours under another name",
            logger="current",
            level=logging.WARNING,
        )


register_models()
MaskedMethod.prepare_process = install
# By force: after an import that failed half-way, the second try says the same as the first.
for method in METHODS.values():
    MODELS.register_module(module=method, force=True)
for part in (*STRATEGIES, CombinedAdversarialLoss):
    MODELS.register_module(module=part, force=True)
    offer(MMPRETRAIN_MODELS, part)
for hook in (MaskingPicturesHook, MaskingMetersHook, RandomStateHook):
    HOOKS.register_module(module=hook, force=True)
    offer(MMPRETRAIN_HOOKS, hook)
