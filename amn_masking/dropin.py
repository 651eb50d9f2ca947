"""Makes mmpretrain's own ``type='MAE'``, and its other methods, accept ``masking=``.

In a config: ``custom_imports = dict(imports=['amn_masking.dropin'])``. Without ``masking`` the
method stays bit-identical to stock.
"""

from amn_masking.adapters.mmpretrain import METHODS, MMPRETRAIN_MODELS

for name, method in METHODS.items():
    MMPRETRAIN_MODELS.register_module(name=name, module=method, force=True)
