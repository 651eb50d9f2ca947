"""mmpretrain's masked-image-modelling methods with ``masking=``."""
