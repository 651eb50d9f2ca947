# ImageNet-100, ViT-S/16: random masks, as stock MAE has them.
_base_ = "../_base_/in100_vit-s.py"

model = dict(masking=_base_.base_random)
