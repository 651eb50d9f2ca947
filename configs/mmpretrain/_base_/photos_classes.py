# What the small benchmarks share: the photographs with their classes, and the encoder of
# ../mae_amn_vit-tiny_photos.py. See amn.py for the names with `base_`.
base_img_size = 128
base_embed_dims = 192
base_num_classes = 14
base_backbone = dict(
    arch=dict(
        _delete_=True,
        embed_dims=base_embed_dims,
        num_layers=6,
        num_heads=3,
        feedforward_channels=4 * base_embed_dims,
    ),
    img_size=base_img_size,
    # Where `make demo` leaves it.
    init_cfg=dict(checkpoint="work_dirs/demo/epoch_40.pth"),
)
base_train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    drop_last=False,
    dataset=dict(
        _delete_=True,
        type="CustomDataset",
        data_root="data/photos",
        data_prefix="train",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="RandomResizedCrop", scale=base_img_size, backend="pillow"),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackInputs"),
        ],
    ),
)
base_val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type="CustomDataset",
        data_root="data/photos",
        data_prefix="val",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=base_img_size, backend="pillow"),
            dict(type="PackInputs"),
        ],
    ),
)
