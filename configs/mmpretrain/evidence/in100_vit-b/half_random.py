# ImageNet-100, ViT-B/16: learned adversarially, from all to half of a mask drawn at random.
_base_ = "../_base_/in100_vit-b.py"

model = dict(masking=_base_.base_half_random)
