# ImageNet-1k, ViT-S/16: green noise: random masks without clumps.
_base_ = "../_base_/in1k_vit-s.py"

model = dict(masking=_base_.base_green_noise)
