# MAE ViT-B/16 on ImageNet-1k, 300 epochs, with learned masks. One node of 8 GPUs, 512 images each:
#
#     mim train mmpretrain configs/mmpretrain/mae_amn_vit-b.py --launcher pytorch --gpus 8
#
# Expects data/imagenet/train/<class>/*. Everything but the masks is mmpretrain's own recipe.
_base_ = [
    "mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py",
    "./_base_/amn.py",
]

# The stock ratio and so the stock price, and of each mask at first all and in the end half drawn at
# random, which is random_share's default at this ratio: of the learned masks the nearest to random
# ones on photographs, and still 0.004 of linear probe below them at equal FLOPs (CIFAR-10,
# docs/results/cifar.md). With random_share=0 it is 0.053. At 0.25, where adversarial masks did best
# on other images, a step has 1.9 times the FLOPs.
model = dict(type="amn_masking.MAE", masking=_base_.base_masking)
train_dataloader = dict(collate_fn=_base_.base_collate_fn)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.base_masking_keys))
