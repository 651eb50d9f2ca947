# The linear probe at a laptop's size: after `make demo`, on the same photographs.
#
#     mim train mmpretrain configs/mmpretrain/benchmarks/vit-tiny_linear_photos.py
#
# It shows that everything works. 14 photographs are no benchmark.
_base_ = ["./vit-base-p16_8xb2048-linear-coslr-90e_in1k.py", "../_base_/photos_classes.py"]

max_epochs = 20
model = dict(
    backbone=dict(frozen_stages=6, **_base_.base_backbone),
    neck=dict(input_features=_base_.base_embed_dims),
    head=dict(in_channels=_base_.base_embed_dims, num_classes=_base_.base_num_classes),
)
data_preprocessor = dict(num_classes=_base_.base_num_classes)
train_dataloader = _base_.base_train_dataloader
val_dataloader = _base_.base_val_dataloader
test_dataloader = val_dataloader

# Without AMP, for the CPU. 6.4 at 16384 images would be 0.01 at 32, but there are 220 steps here.
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="LARS", lr=8.0, weight_decay=0.0, momentum=0.9),
)
param_scheduler = [
    dict(type="CosineAnnealingLR", T_max=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=max_epochs))
