"""Weighted k-NN on frozen features: how good an encoder is, without any training.

    python -m amn_masking.tools.knn CONFIG CKPT [--k 20] [--out knn.json]

CONFIG is one of the linear probe, whose encoder, training set, validation set and validation
transforms count. The vote of Wu et al., "Unsupervised feature learning via non-parametric instance
discrimination" (CVPR 2018), with the k = 20 and T = 0.07 of Caron et al., "Emerging properties in
self-supervised vision transformers" (ICCV 2021).
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amn_masking.tools.checkpoints import backbone_weights, read_checkpoint


@torch.no_grad()
def vote(
    train: Tensor, labels: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """The labels that the nearest neighbours give to the queries, on the device of the features.

    Each of the k training features nearest by cosine similarity c votes with weight
    ``exp(c / temperature)``. A thousand queries are compared at a time, so that the similarities of
    ImageNet's 1.28 million images take 5 GB.

    Args:
        train: ``(N, D)`` features, N >= k, of any length.
        labels: ``(N,)`` integers, at least 0.
        queries: ``(M, D)`` features.
        k: number of neighbours.
        temperature: above 0; small lets the nearest decide alone.

    Returns:
        ``(M,)`` int64 labels.

    Raises:
        ValueError: k or temperature out of range, labels of another kind or number, or a feature
            that is not finite.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k expected 1 to {len(train)}, the number of training images, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature expected above 0, got {temperature}")
    for name, values in (("training images", train), ("queries", queries)):
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"features of the {name} are not finite: is the checkpoint damaged, or did the "
                "training diverge?"
            )
    if labels.is_floating_point() or labels.shape != train.shape[:1] or int(labels.min()) < 0:
        raise ValueError(
            f"labels expected {len(train)} integers of at least 0, one for each training image, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}: {labels}"
        )
    train, labels = F.normalize(train.float(), dim=1), labels.to(train.device, torch.int64)
    classes = int(labels.max()) + 1
    found = []
    for part in F.normalize(queries.float(), dim=1).split(1000):
        nearest = (part @ train.T).topk(k, dim=1)
        # Beside the nearest's, so that one weight at least is not 0 at any temperature.
        weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
        votes = part.new_zeros(len(part), classes)
        found.append(votes.scatter_add_(1, labels[nearest.indices], weights).argmax(1))
    return torch.cat(found)


@torch.no_grad()
def features(
    model: Any, dataloader: Any, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """``(N, D)`` features of an ``ImageClassifier``'s backbone, and ``(N,)`` labels, there."""
    rows, labels = [], []
    for batch in dataloader:
        batch = model.data_preprocessor(batch, training=False)
        (feature,) = model.backbone(batch["inputs"])
        rows.append(feature.flatten(1).float())
        labels += [int(sample.gt_label) for sample in batch["data_samples"]]
    return torch.cat(rows), torch.tensor(labels, device=device)


def evaluate(
    cfg: Any,
    checkpoint: str | Path,
    k: int = 20,
    temperature: float = 0.07,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """k-NN accuracy of a pre-trained encoder.

    Args:
        cfg: mmengine ``Config`` of a linear probe.
        checkpoint: of the pre-training, or what ``export --to mmpretrain`` wrote.
        k, temperature: as for :func:`vote`.
        device: where the encoder runs, and the features are kept and compared.

    Returns:
        ``accuracy`` in [0, 1], ``k``, ``temperature``, ``train_images`` and ``val_images``.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a damaged or foreign checkpoint, one that does not fit the config's encoder, or
            k or temperature out of range.
    """
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    model = with_encoder(cfg, backbone_weights(read_checkpoint(checkpoint)), checkpoint, device)

    # Training images as validation sees them: no random crop.
    train = deepcopy(cfg.val_dataloader)
    train.dataset = deepcopy(cfg.train_dataloader.dataset)
    train.dataset.pipeline = cfg.val_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        (known, known_labels), (queries, labels) = (
            features(model, Runner.build_dataloader(loader), device)
            for loader in (train, cfg.val_dataloader)
        )
    predicted = vote(known, known_labels, queries, k, temperature)
    return {
        "accuracy": float((predicted == labels).double().mean()),
        "k": k,
        "temperature": temperature,
        "train_images": len(known),
        "val_images": len(queries),
    }


def with_encoder(
    cfg: Any, weights: dict[str, Tensor], source: str | Path, device: str | torch.device
) -> Any:
    """The config's ``ImageClassifier`` with these weights in its backbone.

    Args:
        cfg: mmengine ``Config`` of a linear probe.
        weights: named as in the encoder.
        source: where they are from, for the message.
        device: to be on.

    Raises:
        ValueError: they do not fit.
    """
    from mmpretrain.apis import get_model

    model = get_model(cfg, device=device)
    try:
        missing, unexpected = model.backbone.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit the config's encoder: {error}") from error
    # ln2 is the norm after average pooling, which pre-training does not have: 1 and 0.
    missing = [name for name in missing if not name.startswith("ln2.")]
    # ln1 is pre-training's norm at the end where the config's encoder normalises the average, and
    # proj_* are MFF's, which fuse features of several layers in pre-training only.
    unexpected = [n for n in unexpected if not n.startswith(("ln1.", "proj_", "mask_token"))]
    for what, names in (("lacks", missing), ("has, beyond it,", unexpected)):
        if names:
            raise ValueError(
                f"{source} does not fit the config's encoder: it {what} {names[:3]} and so on, "
                f"{len(names)} in all; set the config's model.backbone to the pre-trained one's"
            )
    return model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m amn_masking.tools.knn", description="Weighted k-NN on frozen features."
    )
    parser.add_argument("config", metavar="CONFIG", help="of the linear probe")
    parser.add_argument("checkpoint", metavar="CKPT", help="of the pre-training, or exported")
    parser.add_argument("--k", type=int, default=20, help="neighbours (20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of their votes (0.07)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the result there, as JSON")
    from mmengine.config import Config, DictAction

    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE",
        help="as for mim train, such as model.backbone.out_type=avg_featmap",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        result = evaluate(cfg, args.checkpoint, args.k, args.temperature, args.device)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        parser.exit(1, f"error: {error}\n")
    result = {"config": args.config, "checkpoint": args.checkpoint, **result}
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
