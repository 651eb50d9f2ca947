"""Small models of timm, one for each way in which it embeds positions, and a slow reference."""

from __future__ import annotations

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn

from amn_masking import PatchMask
from tests.helpers.draws import ragged

SIZE = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
SQUARE = dict(SIZE, img_size=32)
EVA = dict(SQUARE, use_rot_pos_emb=True)
ROPE = dict(SIZE, pos_embed="none")
WIDE = (24, 40)
NO_CLASS = dict(class_token=False, global_pool="avg")

# Name: what builds it, and the (height, width) in pixels of its images.
TOKENS = {
    "vit": (lambda: VisionTransformer(**SQUARE), (32, 32)),
    "vit_distilled": (lambda: VisionTransformerDistilled(**SQUARE), (32, 32)),
    "vit_registers": (lambda: VisionTransformer(**SQUARE, reg_tokens=3), (32, 32)),
    "vit_no_embed_class": (lambda: VisionTransformer(**SQUARE, no_embed_class=True), (32, 32)),
    "vit_no_class": (lambda: VisionTransformer(**SQUARE, **NO_CLASS), (32, 32)),
    "vit_pre_norm": (lambda: VisionTransformer(**SQUARE, pre_norm=True), (32, 32)),
    "vit_parallel": (lambda: VisionTransformer(**SQUARE, block_fn=ParallelThingsBlock), (32, 32)),
    "vit_dynamic": (lambda: VisionTransformer(**SQUARE, dynamic_img_size=True), WIDE),
    "vit_oblong_patch": (
        lambda: VisionTransformer(**dict(SQUARE, patch_size=(8, 4), img_size=(24, 16))),
        (24, 16),
    ),
    "vit_patch_drop": (lambda: VisionTransformer(**SQUARE, patch_drop_rate=0.5), (32, 32)),
    "eva02": (lambda: Eva(**EVA, swiglu_mlp=True), (32, 32)),
    "eva_mixed": (lambda: Eva(**EVA, rope_type="mixed"), (32, 32)),
    "eva_dinov3": (
        lambda: Eva(**EVA, rope_type="dinov3", use_abs_pos_emb=False, num_reg_tokens=2),
        (32, 32),
    ),
    "eva_dynamic": (lambda: Eva(**EVA, dynamic_img_size=True), WIDE),
    "eva_patch_drop": (lambda: Eva(**EVA, patch_drop_rate=0.5), (32, 32)),
    "naflex": (lambda: NaFlexVit(**SIZE, pos_embed_grid_size=(4, 4)), WIDE),
    "naflex_linear": (lambda: NaFlexVit(**SIZE, img_size=32, embed_proj_type="linear"), WIDE),
    "naflex_class": (lambda: NaFlexVit(**SIZE, class_token=True, reg_tokens=1), WIDE),
    "naflex_axial": (lambda: NaFlexVit(**ROPE, rope_type="axial"), WIDE),
    "naflex_mixed": (lambda: NaFlexVit(**ROPE, rope_type="mixed"), WIDE),
    "naflex_patch_drop": (lambda: NaFlexVit(**SIZE, patch_drop_rate=0.5), WIDE),
}


def small_hiera(**changes) -> Hiera:
    """Mask units of 8 x 8 pixels, one token for each in the last stage."""
    arguments = dict(
        img_size=(24, 40),
        embed_dim=16,
        stages=(1, 1),
        q_pool=1,
        mask_unit_size=(2, 2),
        mask_unit_attn=(True, False),
        num_classes=0,
    )
    return Hiera(**{**arguments, **changes})


MODELS = {**TOKENS, "hiera": (small_hiera, WIDE)}


def small(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model in ``eval()``, with weights that let attention tell tokens apart, and 3 images.

    timm's own initial weights are so small that a wrong rotary embedding hardly shows.
    """
    build, size = MODELS[name]
    model = build().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, torch.randn(3, 3, *size)


def some_mask(model: nn.Module, images: torch.Tensor, free: bool = False) -> PatchMask:
    """A random mask in random order, of equal counts or of the most different ones."""
    from amn_masking.adapters.timm import patch_size

    grid = tuple(s // p for s, p in zip(images.shape[2:], patch_size(model), strict=True))
    length = grid[0] * grid[1]
    if free:
        return PatchMask.from_mask(ragged(3, length), grid)
    return PatchMask.from_shuffle(torch.rand(3, length).argsort(1), 5, grid)


def visible_ids(patch_mask: PatchMask, row: int) -> list[int]:
    """The visible patches of an image in the mask's order, without padding."""
    count = int((patch_mask.mask[row] == 0).sum())
    return patch_mask.ids_keep[row, :count].tolist()


@torch.no_grad()
def features_alone(model: nn.Module, image: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """``(P + N, D)`` of one image: each token picked by hand, then the blocks, one by one."""
    rope = None
    if isinstance(model, NaFlexVit):
        tokens, grid = model.embeds(image[None])
        if model.rope is not None:
            rope = model.rope.get_embed(shape=grid)
    elif isinstance(model, Eva):
        with_all = model.patch_drop
        model.patch_drop = None
        tokens, rope = model._pos_embed(model.patch_embed(image[None]))
        model.patch_drop = with_all
    else:
        tokens = model._pos_embed(model.patch_embed(image[None]))
    prefix = model.num_prefix_tokens
    kept = [tokens[0, i] for i in range(prefix)] + [tokens[0, prefix + i] for i in ids]
    x = model.norm_pre(torch.stack(kept)[None])
    for layer, block in enumerate(model.blocks):
        if rope is None:
            x = block(x)
        else:
            table = rope[layer] if rope.dim() == 4 else rope
            x = block(x, rope=torch.stack([table[..., i, :] for i in ids], -2))
    return model.norm(x)[0]
