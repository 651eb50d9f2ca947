# ImageNet-100, ViT-S/16: linear probe, mmpretrain's recipe for MAE at 8 x 128 images.
_base_ = "../in100_vit-b/linear.py"

model = dict(
    backbone=dict(arch="deit-small"),
    neck=dict(input_features=384),
    head=dict(in_channels=384),
)
