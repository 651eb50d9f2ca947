# A small MAE on a folder of photographs, for a laptop's CPU: a few minutes on two cores.
#
#     python demo/photos.py data/photos
#     mim train mmpretrain configs/mmpretrain/mae_amn_vit-tiny_photos.py
#
# It shows that everything works and what the masks look like. It is not a benchmark.
_base_ = ["mmpretrain::_base_/default_runtime.py", "./_base_/amn.py"]

img_size = 128
patch_size = 16
embed_dims = 192
max_epochs = 40

model = dict(
    type="amn_masking.MAE",
    data_preprocessor=dict(
        type="SelfSupDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type="MAEViT",
        arch=dict(
            embed_dims=embed_dims, num_layers=6, num_heads=3, feedforward_channels=4 * embed_dims
        ),
        img_size=img_size,
        patch_size=patch_size,
        # Adversarial from the start, at a low ratio: see _base_/amn.py for why.
        mask_ratio=0.25,
    ),
    neck=dict(
        type="MAEPretrainDecoder",
        num_patches=(img_size // patch_size) ** 2,
        patch_size=patch_size,
        embed_dim=embed_dims,
        decoder_embed_dim=128,
        decoder_depth=2,
        decoder_num_heads=4,
    ),
    head=dict(
        type="MAEPretrainHead",
        norm_pix=True,
        patch_size=patch_size,
        loss=dict(type="PixelReconstructionLoss", criterion="L2"),
    ),
    masking=_base_.base_masking,
    init_cfg=[
        dict(type="Xavier", layer="Linear", distribution="uniform"),
        dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
    ],
)

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CustomDataset",
        data_root="data/photos",
        data_prefix="train",
        with_label=False,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(
                type="RandomResizedCrop",
                scale=img_size,
                crop_ratio_range=(0.2, 1.0),
                backend="pillow",
                interpolation="bicubic",
            ),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackInputs"),
        ],
    ),
)

no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys=dict(
            ln=no_decay,
            bias=no_decay,
            pos_embed=no_decay,
            mask_token=no_decay,
            cls_token=no_decay,
            **_base_.base_masking_keys,
        )
    ),
)
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
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs)

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=10, max_keep_ckpts=2))
randomness = dict(seed=0, diff_rank_seed=True)
