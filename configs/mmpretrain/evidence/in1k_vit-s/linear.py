# ImageNet-1k, ViT-S/16: linear probe, mmpretrain's recipe for MAE.
_base_ = "../../benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py"

# The checkpoint of the pre-training: --cfg-options model.backbone.init_cfg.checkpoint=...
model = dict(
    backbone=dict(arch="deit-small", init_cfg=dict(checkpoint="epoch_300.pth")),
    neck=dict(input_features=384),
    head=dict(in_channels=384),
)
