"""mmpretrain's masked-image-modelling methods with ``masking=``."""

from amn_masking.adapters.mmpretrain.methods.backbone_masks import (
    EVA,
    MAE,
    MFF,
    MILAN,
    MixMIM,
    SparK,
)
from amn_masking.adapters.mmpretrain.methods.sample_masks import CAE, BEiT, MaskFeat, SimMIM, iTPN

__all__ = [
    "CAE",
    "EVA",
    "MAE",
    "METHODS",
    "MFF",
    "MILAN",
    "BEiT",
    "MaskFeat",
    "MixMIM",
    "SimMIM",
    "SparK",
    "iTPN",
]

# By the name that mmpretrain gives them.
METHODS = {
    cls.__name__: cls
    for cls in (MAE, EVA, MFF, MILAN, SimMIM, MaskFeat, BEiT, CAE, iTPN, SparK, MixMIM)
}
