"""mmpretrain's own config of each masked-image-modelling method, at a size for a test.

The recipe is the stock one: its pipeline, its losses, its optimizer's settings. Smaller are the
network and the images, and the networks that make targets (CLIP, DALL-E, VQ-KD) are random ones of
the same interface, so that nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules
from torch import Tensor, nn

GRID = 4
WIDTH = 32


@MODELS.register_module()
class TinyCLIP(nn.Module):
    """Random features and attention of the shapes that mmpretrain's CLIPGenerator gives."""

    def __init__(self, patch_size: int = 16, dim: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch_size, patch_size)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        return tokens, (tokens @ tokens.transpose(1, 2)).softmax(-1)


VIT = dict(
    _delete_=True,
    embed_dims=WIDTH, num_layers=4, num_heads=2, feedforward_channels=2 * WIDTH
)  # fmt: skip
HIVIT = dict(_delete_=True, embed_dims=WIDTH, depths=[1, 1, 2], num_heads=2)
SWIN = dict(_delete_=True, embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
CLIP = dict(_delete_=True, type="TinyCLIP")
DALLE = dict(_delete_=True, type="DALL-E", n_hid=4, vocab_size=16)
BACKBONE = dict(arch=VIT, img_size=16 * GRID)
DECODER = dict(
    num_patches=GRID**2,
    embed_dim=WIDTH,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
)
VQKD = dict(arch=VIT, img_size=16 * GRID)

# Label: config below mmpretrain's configs, pixels of an image, changes to the model.
SMALL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "MAE": (
        "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k",
        16 * GRID,
        dict(backbone=BACKBONE, neck=DECODER),
    ),
    "MAE (HiViT)": (
        "mae/mae_hivit-base-p16_8xb512-amp-coslr-400e_in1k",
        16 * GRID,
        dict(backbone=dict(arch=HIVIT, img_size=16 * GRID), neck=DECODER),
    ),
    "MFF": (
        "mff/mff_vit-base-p16_8xb512-amp-coslr-300e_in1k",
        16 * GRID,
        dict(backbone=BACKBONE | dict(out_indices=[0, 2, 3]), neck=DECODER),
    ),
    "EVA": (
        "eva/eva-mae-style_vit-base-p16_16xb256-coslr-400e_in1k",
        16 * GRID,
        dict(
            backbone=BACKBONE,
            neck=DECODER | dict(predict_feature_dim=WIDTH),
            target_generator=CLIP,
        ),
    ),
    "MILAN": (
        "milan/milan_vit-base-p16_16xb256-amp-coslr-400e_in1k",
        16 * GRID,
        dict(
            backbone=BACKBONE,
            neck=DECODER | dict(predict_feature_dim=WIDTH),
            target_generator=CLIP,
        ),
    ),
    "SimMIM": (
        "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px",
        32 * GRID,
        dict(
            backbone=dict(
                arch=SWIN, img_size=32 * GRID, stage_cfgs=dict(block_cfgs=dict(window_size=4))
            ),
            neck=dict(in_channels=64),
        ),
    ),
    "MaskFeat": (
        "maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k",
        224,  # its targets are made for 14 x 14 patches
        dict(backbone=dict(arch=VIT), neck=dict(in_channels=WIDTH)),
    ),
    "BEiT v1": (
        "beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k",
        16 * GRID,
        dict(
            backbone=BACKBONE,
            head=dict(embed_dims=WIDTH, num_embed=16),
            target_generator=DALLE,
        ),
    ),
    "BEiT v2": (
        "beitv2/beitv2_beit-base-p16_8xb256-amp-coslr-300e_in1k",
        16 * GRID,
        dict(
            backbone=BACKBONE | dict(out_indices=[1, 3]),
            neck=dict(early_layers=1, backbone_arch=dict(depth=4, **VIT), num_layers=1),
            head=dict(embed_dims=WIDTH, num_embed=16),
            target_generator=dict(encoder_config=VQKD, num_embed=16, init_cfg=None),
        ),
    ),
    "CAE": (
        "cae/cae_beit-base-p16_8xb256-amp-coslr-300e_in1k",
        16 * GRID,
        dict(
            backbone=BACKBONE,
            neck=dict(
                embed_dims=WIDTH,
                num_heads=2,
                num_classes=16,
                mask_tokens_num=75 * GRID**2 // 196,
                regressor_depth=1,
                decoder_depth=1,
            ),
            target_generator=DALLE,
        ),
    ),
    "iTPN (pixel)": (
        "itpn/itpn-pixel_hivit-base-p16_8xb512-amp-coslr-800e_in1k",
        16 * GRID,
        dict(
            backbone=dict(arch=HIVIT, img_size=16 * GRID),
            neck=DECODER | dict(fpn_dim=16, fpn_depth=1),
        ),
    ),
    "iTPN (clip)": (
        "itpn/itpn-clip-b_hivit-base-p16_8xb256-amp-coslr-300e_in1k",
        16 * GRID,
        dict(
            backbone=dict(arch=HIVIT, img_size=16 * GRID),
            neck=dict(embed_dim=WIDTH, decoder_embed_dim=WIDTH, fpn_dim=16, fpn_depth=1),
            head=dict(embed_dims=WIDTH, num_embed=WIDTH),
            target_generator=CLIP,
        ),
    ),
    "SparK": (
        "spark/spark_sparse-resnet50_8xb512-amp-coslr-800e_in1k",
        32 * GRID,
        dict(
            input_size=32 * GRID,
            enc_dec_norm_dim=64,
            enc_dec_norm_cfg=dict(type="SparseBatchNorm2d"),
            backbone=dict(depth=18, base_channels=8, stem_channels=8, drop_path_rate=0.0),
            neck=dict(feature_dim=32, norm_cfg=dict(type="BN")),
        ),
    ),
    "MixMIM": (
        "mixmim/mixmim_mixmim-base_16xb128-coslr-300e_in1k",
        32 * GRID,
        dict(
            backbone=dict(arch=SWIN, img_size=32 * GRID, window_size=[4, 4, 4, 4]),
            neck=DECODER | dict(embed_dim=64),
        ),
    ),
}

# What a transform of the stock pipelines is told in place of ImageNet's sizes.
TRANSFORMS: dict[str, dict[str, Any]] = {
    "RandomResizedCrop": dict(scale="pixels"),
    "torchvision/Resize": dict(size="pixels"),
    "torchvision/RandomCrop": dict(size="pixels"),
    "RandomResizedCropAndInterpolationWithTwoPic": dict(size="pixels"),
    "SimMIMMaskGenerator": dict(input_size="pixels"),
    "BEiTMaskGenerator": dict(min_num_patches=2, max_num_patches=None),
}


def small_config(
    label: str, data_root: str | Path, masking: Any = None, ours: bool = True
) -> Config:
    """The config of a method, ready for a Runner on the CPU.

    Args:
        label: one of ``SMALL``.
        data_root: a folder with images in ``train``.
        masking: the strategy or its config.
        ours: whether the method is taken from the ``amn_masking`` scope, or is the stock one.
    """
    register_all_modules()
    file, pixels, changes = SMALL[label]
    cfg = Config.fromfile(stock_configs() / f"{file}.py")
    cfg.merge_from_dict(dict(model=fresh(changes)))
    if ours:
        cfg.model.type = f"amn_masking.{cfg.model.type}"
        cfg.model.masking = dict(masking) if isinstance(masking, Mapping) else masking
    dataset = cfg.train_dataloader.dataset
    for transform in dataset.pipeline:
        for key, value in TRANSFORMS.get(transform.type, {}).items():
            transform[key] = pixels if value == "pixels" else value
        if transform.type == "BEiTMaskGenerator":
            side = pixels // 16
            transform.update(input_size=(side, side), num_masking_patches=75 * side**2 // 196)
        if "second_size" in transform:
            # DALL-E's tokens are of 8 pixels, so its picture is half as large.
            transform.second_size = transform.second_size * pixels // 224
    on_the_cpu(cfg, data_root)
    return cfg


def on_the_cpu(cfg: Config, data_root: str | Path, batch_size: int = 8) -> None:
    """Let a stock config train for an epoch on the photographs, without an accelerator."""
    cfg.train_dataloader.dataset = dict(
        type="CustomDataset",
        data_root=str(data_root),
        data_prefix="train",
        with_label=False,
        pipeline=cfg.train_dataloader.dataset.pipeline,
    )
    cfg.train_dataloader.update(batch_size=batch_size, num_workers=0, persistent_workers=False)
    # The stock wrapper asserts an accelerator.
    cfg.optim_wrapper.type = "OptimWrapper"
    cfg.optim_wrapper.pop("loss_scale", None)
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=1)
    cfg.param_scheduler = None
    cfg.resume = False
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = -1


def fresh(changes: Any) -> Any:
    """A copy in which nothing is shared: merging takes `_delete_` out of what it is given."""
    if isinstance(changes, dict):
        return {key: fresh(value) for key, value in changes.items()}
    return changes


def stock_configs() -> Path:
    """mmpretrain's own folder of configs."""
    import mmpretrain

    return Path(mmpretrain.__file__).parent / ".mim" / "configs"
