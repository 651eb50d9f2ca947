# ImageNet-100, ViT-B/16: the hardest patches by a predictor's order, from none to half of them.
_base_ = "../_base_/in100_vit-b.py"

model = dict(masking=_base_.base_hard_patches)
