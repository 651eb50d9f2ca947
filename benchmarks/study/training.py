"""A masked autoencoder of mmpretrain, trained by mmengine's Runner on images in memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, FUNCTIONS, HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules
from torch import Tensor
from torch.utils.data import Dataset

import benchmarks.study.controls  # noqa: F401  (registers strategies)
from benchmarks.study.data import Images
from benchmarks.study.learning import ARMS, CopiedMasking, RegretMasking, RulerHook, held_out
from benchmarks.study.measures import step_flops
from benchmarks.study.settings import PhotoRecipe, Setting, random_masks


def device() -> str:
    """Where the study trains and measures."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@DATASETS.register_module()
class InMemoryImages(Dataset):
    """Training pictures, a random crop of each at every visit, a batch at a time, where they are.

    Args:
        images: with their margin.
        seed: of the crops. They have a generator of their own, so that strategies that draw more
            or fewer random numbers see the same crops.
    """

    def __init__(self, images: Images, seed: int) -> None:
        self.pixels = images.pixels
        self.margin = images.margin
        self.mirrored = images.mirrored
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise TypeError("pictures are read by the batch: use a loader that calls __getitems__")

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        count, side = len(indices), self.pixels.shape[-1] - 2 * self.margin
        corner = torch.randint(2 * self.margin + 1, (2, count, 1), generator=self.generator)
        rows, columns = corner + torch.arange(side)
        if self.mirrored:
            flip = torch.rand(count, 1, generator=self.generator) < 0.5
            columns = torch.where(flip, columns.flip(1), columns)
        device = self.pixels.device
        which, rows, columns = (
            ids.to(device) for ids in (torch.tensor(indices)[:, None, None], rows, columns)
        )
        # Channels last while indexing: three index tensors side by side give (B, S, S, C).
        crops = self.pixels.movedim(1, -1)[which, rows[:, :, None], columns[:, None, :]]
        return {"inputs": crops.movedim(-1, 1).contiguous(), "data_samples": []}


@FUNCTIONS.register_module()
def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """The collate function for batches that are batches already."""
    return batch


@HOOKS.register_module()
class SilentRuntimeInfoHook(RuntimeInfoHook):
    """Without the losses, which nobody reads here: each would make the step wait for the GPU."""

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        pass


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Training steps under bfloat16 autocast, whose range needs no scaling of the loss."""

    @contextmanager
    def optim_context(self, model: Any) -> Iterator[None]:
        kind = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(kind, dtype=torch.bfloat16):
            yield


def merge_groups(optimizer: torch.optim.Optimizer) -> None:
    """Put the parameters of equal options into one group: mmengine makes one for each parameter,
    and the fused optimizer runs once for each group.
    """
    merged: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key != "params"}
        known = merged.setdefault(repr(sorted(options.items())), {**options, "params": []})
        known["params"] += group["params"]
    optimizer.param_groups[:] = merged.values()


def model_config(setting: Setting) -> dict[str, Any]:
    """The model of a setting; ``amn_masking.MAE`` with its strategy."""
    recipe = setting.recipe
    masking = None if setting.masking is None else dict(setting.masking)
    if by_ruler(setting):
        masking = dict(masking["masking"])
    if masking is not None and masking["type"] == "RandomRatioMasking":
        # The ratio within is for the tables, the middle of the range.
        masking["masking"] = {k: v for k, v in masking["masking"].items() if k != "mask_ratio"}
    return dict(
        type="amn_masking.MAE",
        data_preprocessor=dict(type="SelfSupDataPreprocessor"),
        backbone=dict(
            type="MAEViT",
            arch=dict(
                embed_dims=recipe.width,
                num_layers=recipe.layers,
                num_heads=recipe.heads,
                feedforward_channels=4 * recipe.width,
            ),
            img_size=recipe.side,
            patch_size=recipe.patch,
            patch_cfg=dict(in_channels=recipe.channels),
        ),
        neck=dict(
            type="MAEPretrainDecoder",
            num_patches=(recipe.side // recipe.patch) ** 2,
            patch_size=recipe.patch,
            in_chans=recipe.channels,
            embed_dim=recipe.width,
            decoder_embed_dim=recipe.decoder_width,
            decoder_depth=recipe.decoder_layers,
            decoder_num_heads=4,
        ),
        head=dict(
            type="MAEPretrainHead",
            norm_pix=recipe.norm_pix,
            patch_size=recipe.patch,
            in_channels=recipe.channels,
            loss=dict(type="PixelReconstructionLoss", criterion="L2"),
        ),
        masking=masking,
        init_cfg=[
            dict(type="Xavier", layer="Linear", distribution="uniform"),
            dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
        ],
    )


def build(setting: Setting, seed: int) -> Any:
    """The model at the start: by seed and recipe one autoencoder, whatever the strategy; on the
    CPU.
    """
    register_all_modules()
    torch.manual_seed(seed)
    model = MODELS.build(model_config(setting))
    torch.manual_seed(seed)
    # The autoencoder's parts come before the strategy in the order of children, so they get the
    # same random numbers.
    model.init_weights()
    return model


def make_runner(model: Any, images: Images, setting: Setting, seed: int, folder: str) -> Runner:
    """The Runner that trains ``model``; AdamW, a warm-up of a twentieth, then a cosine."""
    recipe = setting.recipe
    no_decay = dict(decay_mult=0.0)
    warm_up = max(1, recipe.epochs // 20)
    bfloat16 = isinstance(recipe, PhotoRecipe) and recipe.precision == "bfloat16"
    return Runner(
        model=model,
        work_dir=folder,
        experiment_name=f"study-{uuid.uuid4().hex}",  # mmengine keeps its loggers by name
        train_dataloader=dict(
            batch_size=recipe.batch,
            num_workers=0,
            drop_last=True,
            sampler=dict(type="DefaultSampler", shuffle=True, seed=seed),
            collate_fn=dict(type="as_it_is"),
            dataset=InMemoryImages(images, seed),
        ),
        optim_wrapper=dict(
            type="Bfloat16OptimWrapper" if bfloat16 else "OptimWrapper",
            optimizer=dict(
                type="AdamW", lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True
            ),
            paramwise_cfg=dict(
                custom_keys=dict(
                    ln=no_decay,
                    bias=no_decay,
                    pos_embed=no_decay,
                    mask_token=no_decay,
                    cls_token=no_decay,
                    masking=dict(lr_mult=setting.lr_mult, decay_mult=0.0),
                )
            ),
        ),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.01, end=warm_up, convert_to_iter_based=True),
            dict(
                type="CosineAnnealingLR",
                T_max=recipe.epochs - warm_up,
                begin=warm_up,
                end=recipe.epochs,
                convert_to_iter_based=True,
            ),
        ],
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=recipe.epochs),
        default_hooks=dict(
            logger=None, checkpoint=None, runtime_info=dict(type="SilentRuntimeInfoHook")
        ),
        visualizer=dict(type="Visualizer", vis_backends=[]),
        default_scope="mmpretrain",
        log_level="ERROR",
        randomness=dict(seed=seed),
    )


def by_ruler(setting: Setting) -> bool:
    """Whether the mask ratio is to follow the ruler."""
    return setting.masking is not None and setting.masking["type"] == "RulerMasking"


def ruler_hook(images: Tensor, runner: Runner, setting: Setting, seed: int) -> RulerHook:
    """The hook that moves the ratio, told what a step costs at each."""
    inner = replace(setting, masking=setting.masking["masking"])
    flops = []
    for ratio in ARMS:
        one = build(replace(inner, masking={**inner.masking, "mask_ratio": ratio}), seed)
        flops.append(step_flops(one.to(images.device), images)["flops_step"])
    choice = setting.masking.get("choice", "reward")
    return RulerHook(images, [f / max(flops) for f in flops], runner.max_iters, choice, seed)


def attach(model: Any, images: Images, setting: Setting, seed: int) -> None:
    """Give masks that ask a copy of the autoencoder that copy, and those that ask a trained
    reference that reference: trained once, and kept in the folder for temporary files.
    """
    if isinstance(model.masking, CopiedMasking):
        model.masking.autoencoder = [model, deepcopy(model).train().requires_grad_(False)]
    if not isinstance(model.masking, RegretMasking):
        return
    wanted = random_masks(setting.recipe, 0.5)
    name = hashlib.sha256(f"{wanted.to_json()} {seed}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"amn_masking_reference_{name}.pth"
    reference = build(wanted, seed)
    if not path.exists():
        train(reference, images, wanted, seed)
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save(reference.state_dict(), partial)
        partial.replace(path)
    reference.load_state_dict(torch.load(path, weights_only=True))
    device = next(model.parameters()).device
    model.masking.reference = [reference.to(device).train().requires_grad_(False)]


def train(model: Any, images: Images, setting: Setting, seed: int) -> int:
    """Train in place; the number of steps."""
    attach(model, images, setting, seed)
    ruled = None
    if by_ruler(setting):
        images, ruled = held_out(images, seed)
    with tempfile.TemporaryDirectory() as folder:
        runner = make_runner(model, images, setting, seed, folder)
        if isinstance(setting.recipe, PhotoRecipe):
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            merge_groups(runner.optim_wrapper.optimizer)
        if ruled is not None:
            runner.register_hook(ruler_hook(ruled, runner, setting, seed))
        runner.train()
    return runner.iter


@torch.no_grad()
def features(model: Any, pixels: Tensor) -> Tensor:
    """``(N, D)`` the mean over the patches of whole images, ``(N, C, S, S)``."""
    model.eval()
    batch = 2000 if pixels.is_cuda else 250
    return torch.cat([model.extract_feat(part)[0][:, 1:].mean(1) for part in pixels.split(batch)])
