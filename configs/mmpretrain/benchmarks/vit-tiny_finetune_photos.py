# Fine-tuning at a laptop's size: after `make demo`, on the same photographs.
#
#     mim train mmpretrain configs/mmpretrain/benchmarks/vit-tiny_finetune_photos.py
#
# It shows that everything works. 14 photographs are no benchmark.
_base_ = ["./vit-base-p16_8xb128-coslr-100e_in1k.py", "../_base_/photos_classes.py"]

max_epochs = 20
model = dict(
    backbone=_base_.base_backbone,
    head=dict(in_channels=_base_.base_embed_dims, num_classes=_base_.base_num_classes),
)
data_preprocessor = dict(num_classes=_base_.base_num_classes)
train_dataloader = _base_.base_train_dataloader
val_dataloader = _base_.base_val_dataloader
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=max_epochs - 2,
        begin=2,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
