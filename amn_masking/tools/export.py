"""Take the encoder home: the backbone of a training checkpoint, and nothing else.

    python -m amn_masking.tools.export CKPT --to mmpretrain OUT.pth
    python -m amn_masking.tools.export CKPT --to timm OUT.safetensors

Masking network, decoder, head, optimizer and logs stay behind. Works for stock mmpretrain's
checkpoints too, and needs torch only.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from amn_masking.tools.checkpoints import backbone_weights, read_checkpoint

# A ViT of mmpretrain, in timm's names.
STEM = {"patch_embed.projection": "patch_embed.proj", "ln1": "norm"}
BLOCK = {
    "ln1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "ln2": "norm2",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
MFF_ONLY = ("proj_layers.", "proj_weights")


def timm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a ``MAEViT`` as timm's ``VisionTransformer`` names them.

    Both compute the same: qkv in one matrix, exact GELU, LayerNorm with eps 1e-6, the fixed
    position embedding added to class token and patches alike, a norm at the end. MFF's projections
    are left out: they serve its pre-training only. Other backbones are refused.
    """
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(MFF_ONLY)}
    numbered = [re.match(r"layers\.(\d+)\.", name) for name in weights]
    depth = 1 + max((int(match[1]) for match in numbered if match), default=-1)
    layers = STEM | {
        f"layers.{index}.{ours}": f"blocks.{index}.{theirs}"
        for index in range(depth)
        for ours, theirs in BLOCK.items()
    }
    names = {"cls_token": "cls_token", "pos_embed": "pos_embed"}
    for ours, theirs in layers.items():
        names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    missing, unexpected = sorted(names.keys() - weights), sorted(weights.keys() - names)
    if depth == 0 or missing or unexpected:
        raise ValueError(
            "--to timm expected the weights of a MAEViT, a plain ViT with a final norm; this "
            f"backbone lacks {missing[:3] or 'none of them'} and has {unexpected[:3] or 'nothing'} "
            "besides. timm has no counterpart that gives the same features; use --to mmpretrain"
        )
    return {names[name]: tensor for name, tensor in weights.items()}


def export(
    checkpoint: str | os.PathLike, to: str, out: str | os.PathLike, force: bool = False
) -> dict[str, Tensor]:
    """Write the encoder of a training checkpoint to a file of its own.

    The file appears whole or not at all, and loads with ``weights_only=True``.

    Args:
        checkpoint: what the Runner saved. Where the run had an ``EMAHook`` the averaged weights
            are taken, with which mmengine itself evaluates.
        to: ``'mmpretrain'``, for ``init_cfg=dict(type='Pretrained', checkpoint=out,
            prefix='backbone.')``, or ``'timm'``, for ``timm.create_model(name, num_classes=0,
            checkpoint_path=out)``.
        out: ``.pth``, or with timm ``.safetensors`` too (mmengine does not read those).
        force: write over ``out``.

    Returns:
        The tensors by the names they have in the file.

    Raises:
        FileNotFoundError: no such checkpoint, or no folder for ``out``.
        FileExistsError: ``out`` exists and ``force`` is not set.
        ValueError: another ``to`` or ending, a damaged or foreign checkpoint, or for timm a
            backbone that is no plain ViT.
        ImportError: safetensors is not installed.
    """
    out = Path(out)
    if to not in ("mmpretrain", "timm"):
        raise ValueError(f"to= expected 'mmpretrain' or 'timm', got {to!r}")
    endings = (".pth", ".safetensors") if to == "timm" else (".pth",)
    if out.suffix not in endings:
        raise ValueError(
            f"expected a file that ends in {' or '.join(endings)} for {to}, got {out}"
            + ("; mmengine cannot read safetensors" if out.suffix == ".safetensors" else "")
        )
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; say --force (force=True) to write over it")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"expected a folder to write to, but {out.parent} does not exist")

    weights = backbone_weights(read_checkpoint(checkpoint))
    if to == "timm":
        weights = timm_names(weights)
    else:
        weights = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    # A tensor that is a view would be written with all that it views, or refused.
    weights = {name: tensor.clone().contiguous() for name, tensor in weights.items()}

    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        if out.suffix == ".safetensors":
            partial.write_bytes(as_safetensors(weights))
        else:
            torch.save(weights if to == "timm" else {"state_dict": weights}, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return weights


def as_safetensors(weights: dict[str, Tensor]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError(
            "a .safetensors file needs the package safetensors; install it with pip install "
            "safetensors, or write a .pth"
        ) from error
    return save(weights, metadata={"format": "pt"})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m amn_masking.tools.export",
        description="Write the encoder of a training checkpoint to a file of its own. Of a run "
        "with an EMAHook the averaged weights are taken, with which mmengine evaluates.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="an epoch_N.pth of mim train")
    parser.add_argument("--to", required=True, choices=("mmpretrain", "timm"))
    parser.add_argument("out", metavar="OUT", help=".pth, or with --to timm also .safetensors")
    parser.add_argument("--force", action="store_true", help="write over OUT")
    args = parser.parse_args(arguments)
    try:
        weights = export(args.checkpoint, args.to, args.out, args.force)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        parser.exit(1, f"error: {error}\n")
    numbers = sum(tensor.numel() for tensor in weights.values())
    print(f"wrote {args.out}: {len(weights)} tensors, {numbers / 1e6:.1f} M numbers, for {args.to}")


if __name__ == "__main__":
    main()
