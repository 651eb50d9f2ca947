# What the configs of this folder share: the strategy, its learning rate, pictures, meters and log.
#
# Names with `base_` are taken up by a config as `_base_.base_masking` and so on, because two bases
# may not both say `model`. To change a setting from the command line, name the place where it
# counts, such as model.masking.network.downsample.

# Each config adds its own mask ratio, which belongs together with the strength. On photographs no
# learned masks have beaten random ones (docs/results/cifar.md). In the study of docs/evidence.md
# adversarial masks (strength +1, the default) made better features than random
# masks on one of two kinds of small images at 0.375; at 0.25 the lead is smaller (p = 0.09), and
# none is left at equal time. On the other kind, at 0.25, the linear probe was level, on noisy and
# blurred images worse. At 0.75 they were no better on the first and ruinous on the second (one
# seed). (On the second, small digits on black, `strength=-1.0` at 0.875 was the best.) A small
# search on the first kind found nothing above this default. Nothing is shown at ImageNet's scale.
base_masking = dict(
    type="AdversarialMasking",
    # About as hard masks as at 1, for next to nothing: docs/evidence.md.
    network=dict(downsample=8),
    threshold=dict(type="quantile"),
    estimator=dict(type="inclusion"),
    loss=dict(type="CombinedAdversarialLoss", lambda_adv=0.5),
)

# Adam makes the strength of the reversal nearly scale-free, so the network's speed is set here.
# Keys are substrings of parameter names, and the longest wins: 'mask' alone would also catch
# mask_token.
base_masking_keys = {"masking": dict(lr_mult=1.0, decay_mult=0.0)}

# `_base_ = 'mmpretrain::...'` marks the stock collate function with `_scope_`, which it does not
# take; so every config states it anew.
base_collate_fn = dict(_delete_=True, type="default_collate")

custom_hooks = [
    dict(type="amn_masking.MaskingPicturesHook", interval=10),
    dict(type="amn_masking.MaskingMetersHook", interval=50),
    # A resumed run draws the random numbers of one that was never stopped.
    dict(type="amn_masking.RandomStateHook"),
]
