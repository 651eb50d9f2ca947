# ImageNet-1k, ViT-B/16: fine-tuning, mmpretrain's recipe for MAE.
_base_ = "../../benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py"

# The checkpoint of the pre-training: --cfg-options model.backbone.init_cfg.checkpoint=...
model = dict(
    backbone=dict(init_cfg=dict(checkpoint="epoch_300.pth")),
)
