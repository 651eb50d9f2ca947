# ImageNet-1k, ViT-S/16: learned adversarially, from all to half of a mask drawn at random.
_base_ = "../_base_/in1k_vit-s.py"

model = dict(masking=_base_.base_half_random)
