# ImageNet-100, ViT-B/16: green noise: random masks without clumps.
_base_ = "../_base_/in100_vit-b.py"

model = dict(masking=_base_.base_green_noise)
