"""The ``amn_masking`` scope of the OpenMMLab registries.

mmengine imports this file by itself when a config says ``type='amn_masking.X'``, and swallows
errors while it does: so nothing heavy is imported here. The locations are imported at the first
look-up, where errors show.
"""

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

LOCATIONS = ["amn_masking.adapters.mmpretrain"]
MODELS = Registry("model", parent=ROOT_MODELS, scope="amn_masking", locations=LOCATIONS)
HOOKS = Registry("hook", parent=ROOT_HOOKS, scope="amn_masking", locations=LOCATIONS)
