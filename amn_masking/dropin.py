"""Makes mmpretrain's own ``type='MAE'`` accept ``masking=``.

In a config: ``custom_imports = dict(imports=['amn_masking.dropin'])``. Without ``masking`` the
method stays bit-identical to stock.
"""

from amn_masking.adapters.mmpretrain import MAE, MMPRETRAIN_MODELS

MMPRETRAIN_MODELS.register_module(name="MAE", module=MAE, force=True)
