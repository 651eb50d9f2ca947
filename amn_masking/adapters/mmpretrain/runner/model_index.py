"""The shipped configs, by name, for mmpretrain's ``list_models`` and ``get_model``."""

from __future__ import annotations

from mmpretrain.apis import ModelHub

from amn_masking.tools.shipped import configs_root

METAFILE = "configs/mmpretrain/metafile.yml"
FIRST = "mae-amn_vit-base-p16_8xb512-amp-coslr-300e_in1k"


def register_models() -> None:
    """Make mmpretrain know the configs by name. Once is enough; again does no harm."""
    root = configs_root()
    if root is not None and not ModelHub.has(FIRST):
        ModelHub.register_model_index(root / METAFILE, config_prefix=root)
