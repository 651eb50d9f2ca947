# The same on ImageNet-100 (Tian et al., "Contrastive Multiview Coding", 2019: 100 classes, 127,000
# images), 400 epochs, 8 x 128 images.
#
# Expects data/imagenet100/{train,val}/<class>/*.
_base_ = "./in1k_vit-b.py"

train_dataloader = dict(
    batch_size=128, dataset=dict(data_root="data/imagenet100", with_label=False)
)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4 * 1024 / 256))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, end=40, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", T_max=360, begin=40, end=400, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=400)
auto_scale_lr = dict(base_batch_size=1024)
