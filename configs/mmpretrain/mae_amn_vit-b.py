# MAE ViT-B/16 on ImageNet-1k, 300 epochs, with learned masks. One node of 8 GPUs, 512 images each:
#
#     mim train mmpretrain configs/mmpretrain/mae_amn_vit-b.py --launcher pytorch --gpus 8
#
# Expects data/imagenet/train/<class>/*. Everything but the masks is mmpretrain's own recipe.
_base_ = [
    "mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py",
    "./_base_/amn.py",
]

# Masks what is easy at the start (strength -1) and what is hard at the end (+1), at the stock ratio
# of 0.75 and so at the stock cost. See _base_/amn.py for why.
model = dict(
    type="amn_masking.MAE",
    masking=dict(strength=dict(type="linear", start=-1.0, end=1.0), **_base_.base_masking),
)
train_dataloader = dict(collate_fn=_base_.base_collate_fn)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.base_masking_keys))
