# What every pre-training of the comparison shares: mmpretrain's own MAE recipe at its mask ratio of
# 0.75, ViT-B/16 at 224 on ImageNet-1k, 300 epochs, 8 x 512 images. Arms whose step has other FLOPs
# train for as many epochs as make the FLOPs of the whole training equal (to within 1 %).
#
# Expects data/imagenet/{train,val}/<class>/*.
_base_ = [
    "mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py",
    "../../_base_/amn.py",
]

model = dict(type="amn_masking.MAE")
train_dataloader = dict(collate_fn=_base_.base_collate_fn)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.base_masking_keys))
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=2))

# `masking` of each arm.
base_network = dict(downsample=8)
base_random = dict(type="RandomMasking")
base_green_noise = dict(type="ColorNoiseMasking", color="green")
base_hard_patches = dict(type="HardPatchMasking", network=base_network)
base_half_random = dict(
    type="AdversarialMasking",
    network=base_network,
    random_share=dict(type="linear", start=1.0, end=0.5),
)
# Fully adversarial at the ratio that was best for it on CIFAR-10, docs/results/cifar.md.
base_adversarial = dict(
    type="AdversarialMasking", mask_ratio=0.5, random_share=0.0, network=base_network
)
# A quarter of the patches is seen, another predicted, the rest left out: docs/prediction_ratio.md.
base_predicted_random = dict(type="RandomMasking", prediction_ratio=0.25)
base_predicted_learned = dict(
    type="AdversarialMasking", prediction_ratio=0.25, random_share=0.0, network=base_network
)
