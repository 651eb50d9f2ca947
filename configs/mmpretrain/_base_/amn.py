# What the configs of this folder share: the strategy, its learning rate, pictures, meters and log.
#
# Names with `base_` are taken up by a config as `_base_.base_masking` and so on, because two bases
# may not both say `model`. To change a setting from the command line, name the place where it
# counts, such as model.masking.network.downsample.

# Each config adds its own mask ratio, which belongs together with the strength: docs/choosing.md.
# On photographs no learned masks have beaten random ones so far: docs/evidence.md.
base_masking = dict(
    type="AdversarialMasking",
    # About as hard masks as at 1, for next to nothing: docs/price.md.
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
