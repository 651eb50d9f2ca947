# ImageNet-100, ViT-S/16: fine-tuning, mmpretrain's recipe for MAE.
_base_ = "../../benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py"

# The checkpoint of the pre-training: --cfg-options model.backbone.init_cfg.checkpoint=...
model = dict(
    backbone=dict(arch="deit-small", init_cfg=dict(checkpoint="epoch_400.pth")),
    head=dict(in_channels=384, num_classes=100),
)
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="CustomDataset",
        data_root="data/imagenet100",
        data_prefix="train",
        pipeline=_base_.train_dataloader.dataset.pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="CustomDataset",
        data_root="data/imagenet100",
        data_prefix="val",
        pipeline=_base_.val_dataloader.dataset.pipeline,
    )
)
test_dataloader = val_dataloader
