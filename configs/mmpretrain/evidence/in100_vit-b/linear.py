# ImageNet-100, ViT-B/16: linear probe, mmpretrain's recipe for MAE at 8 x 128 images.
_base_ = "../../benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py"

# The checkpoint of the pre-training: --cfg-options model.backbone.init_cfg.checkpoint=...
model = dict(
    backbone=dict(init_cfg=dict(checkpoint="epoch_400.pth")),
    head=dict(num_classes=100),
)
data_preprocessor = dict(num_classes=100)
# Not its 8 x 2048 images, of which an epoch has seven: 8 x 128, the learning rate in proportion.
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type="CustomDataset",
        data_root="data/imagenet100",
        data_prefix="train",
        pipeline=_base_.train_dataloader.dataset.pipeline,
    ),
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
optim_wrapper = dict(optimizer=dict(lr=6.4 * 1024 / 16384))
