"""Importing this lets mmengine read local checkpoints into any model by ``weights_only``.

For configs that start from a checkpoint of the Runner as it is, such as a linear probe::

    custom_imports = dict(imports=["amn_masking.adapters.mmpretrain.runner.safe_reading"])
"""

from __future__ import annotations

from amn_masking.adapters.mmpretrain.runner.resume import load_from_local, read_locally_with

read_locally_with(load_from_local)
