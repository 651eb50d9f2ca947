# Fine-tune a pre-trained ViT-B/16 on ImageNet-1k: mmpretrain's recipe for MAE, 100 epochs, one node
# of 8 GPUs, 128 images each.
#
#     mim train mmpretrain THIS --launcher pytorch --gpus 8 \
#         --cfg-options model.backbone.init_cfg.checkpoint=work_dirs/mae_amn_vit-b/epoch_300.pth
_base_ = "mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py"

# A checkpoint of the pre-training as it is, or what amn_masking.tools.export --to mmpretrain wrote.
model = dict(
    backbone=dict(init_cfg=dict(checkpoint="work_dirs/mae_amn_vit-b/epoch_300.pth")),
)
# With it mmengine can read the former on torch 2.6 and newer.
custom_imports = dict(imports=["amn_masking.adapters.mmpretrain.runner.safe_reading"])
