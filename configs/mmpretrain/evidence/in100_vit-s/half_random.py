# ImageNet-100, ViT-S/16: learned adversarially, from all to half of a mask drawn at random.
_base_ = "../_base_/in100_vit-s.py"

model = dict(masking=_base_.base_half_random)
