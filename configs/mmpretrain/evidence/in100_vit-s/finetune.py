# ImageNet-100, ViT-S/16: fine-tuning, mmpretrain's recipe for MAE.
_base_ = "../in100_vit-b/finetune.py"

model = dict(
    backbone=dict(arch="deit-small"),
    head=dict(in_channels=384),
)
