"""The shipped configs, by name, for mmpretrain's ``list_models`` and ``get_model``."""

from __future__ import annotations

from pathlib import Path

from mmpretrain.apis import ModelHub

import amn_masking

METAFILE = "configs/mmpretrain/metafile.yml"
FIRST = "mae-amn_vit-base-p16_8xb512-amp-coslr-300e_in1k"


def configs_root() -> Path | None:
    """The folder that holds ``configs``; None if they were left out.

    An installed wheel has them in ``amn_masking/.mim``, as OpenMMLab's packages do; in a checkout
    they are beside the package.
    """
    package = Path(amn_masking.__file__).parent
    for root in (package / ".mim", package.parent):
        if (root / METAFILE).is_file():
            return root
    return None


def register_models() -> None:
    """Make mmpretrain know the configs by name. Once is enough; again does no harm."""
    root = configs_root()
    if root is not None and not ModelHub.has(FIRST):
        ModelHub.register_model_index(root / METAFILE, config_prefix=root)
