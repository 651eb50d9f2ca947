# ImageNet-1k, ViT-S/16: the hardest patches by a predictor's order, from none to half of them.
_base_ = "../_base_/in1k_vit-s.py"

model = dict(masking=_base_.base_hard_patches)
