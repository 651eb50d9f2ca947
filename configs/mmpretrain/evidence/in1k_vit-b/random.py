# ImageNet-1k, ViT-B/16: random masks, as stock MAE has them.
_base_ = "../_base_/in1k_vit-b.py"

model = dict(masking=_base_.base_random)
