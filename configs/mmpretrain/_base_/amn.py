# What the configs of this folder share: the strategy, its learning rate, its pictures.
# A config takes these by `_base_.masking` and so on, because two bases may not both say `model`.

# The strategy. Each config adds its own mask ratio and strength: the two belong together. In a
# prototype on small handwritten digits (one to three seeds, so a hint and no evidence) adversarial
# masks at MAE's usual ratio of 0.75 made the features much worse than random masks did, because
# nothing worth seeing was left. Adversarial at 0.25, and a curriculum from cooperative to
# adversarial at 0.75, did no harm there. The shipped configs use those two. Nothing is shown yet
# at the scale of ImageNet.
masking = dict(
    type="AdversarialMasking",
    network=dict(downsample=2),
    threshold=dict(type="quantile"),
    estimator=dict(type="straight_through"),
    loss=dict(type="CombinedAdversarialLoss", lambda_adv=0.5),
)

# Adam makes the strength of the reversal nearly scale-free, so the network's speed is set here.
# Keys are substrings of parameter names, and the longest wins: 'mask' alone would also catch
# mask_token.
masking_keys = {"masking": dict(lr_mult=1.0, decay_mult=0.0)}

pictures = dict(type="amn_masking.MaskingPicturesHook", interval=10)

# `_base_ = 'mmpretrain::...'` marks the stock collate function with `_scope_`, which it does not
# take; so every config states it anew.
collate_fn = dict(_delete_=True, type="default_collate")
