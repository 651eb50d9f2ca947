"""Linear probe, fine-tuning and k-NN, for real, from what the real pre-training left."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from imageio.v3 import imread
from mmengine.config import Config
from mmengine.hub import get_config
from PIL import Image

from amn_masking.tools.checkpoints import backbone_weights, read_checkpoint
from amn_masking.tools.export import export
from amn_masking.tools.knn import evaluate, main, vote
from tests.conftest import ROOT
from tests.helpers.mim import PHOTOS_CONFIG, TINY, data_options, mim_train

BENCHMARKS = "configs/mmpretrain/benchmarks"
LINEAR = f"{BENCHMARKS}/vit-tiny_linear_photos.py"
FINETUNE = f"{BENCHMARKS}/vit-tiny_finetune_photos.py"
PIXELS = 64


def small(photos: Path) -> dict:
    """The options that bring a benchmark to the size of the tests' pre-training."""
    options = {"model.backbone.img_size": PIXELS, "train_dataloader.batch_size": 14}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        options |= {
            f"{loader}.dataset.data_root": photos,
            f"{loader}.dataset.pipeline.1.scale": PIXELS,
            f"{loader}.num_workers": 0,
            f"{loader}.persistent_workers": False,
        }
    return options


def briefly(photos: Path, checkpoint: Path) -> dict:
    return small(photos) | {
        "model.backbone.init_cfg.checkpoint": checkpoint,
        "train_cfg.max_epochs": 1,
        "train_cfg.val_interval": 1,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.logger.interval": 1,
    }


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, photos) -> Path:
    """The checkpoint of one epoch of the shipped pre-training, by the real ``mim train``."""
    work_dir = tmp_path_factory.mktemp("pretrained")
    crop = {"train_dataloader.dataset.pipeline.1.scale": PIXELS}
    mim_train(PHOTOS_CONFIG, work_dir, TINY | data_options(photos) | crop)
    return work_dir / "epoch_1.pth"


@pytest.fixture(scope="session")
def exported(tmp_path_factory, pretrained) -> Path:
    out = tmp_path_factory.mktemp("exported") / "encoder.pth"
    export(pretrained, "mmpretrain", out)
    return out


def encoder_of(path: Path) -> dict[str, torch.Tensor]:
    return backbone_weights(read_checkpoint(path))


def complaints(output: str) -> dict[str, list[str]]:
    """What mmengine says it missed and did not expect when it loaded the encoder."""
    found = {}
    for key, pattern in (
        ("unexpected", r"unexpected key in source state_dict: (.*)"),
        ("missing", r"missing keys in source state_dict: (.*)"),
    ):
        match = re.search(pattern, output)
        found[key] = sorted(match[1].split(", ")) if match else []
    return found


@pytest.mark.slow
def test_the_linear_probe_starts_from_the_encoder_and_leaves_it_alone(pretrained, photos, tmp_path):
    """From the checkpoint of the Runner as it is, log buffers and all."""
    output = mim_train(LINEAR, tmp_path, briefly(photos, pretrained))
    assert f"from: {pretrained}" in output.replace("\n", "")
    assert complaints(output) == {"unexpected": [], "missing": []}
    before, after = encoder_of(pretrained), encoder_of(tmp_path / "epoch_1.pth")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    assert 0 <= accuracy(output) <= 100
    head = read_checkpoint(tmp_path / "epoch_1.pth")["state_dict"]
    # Truncated normal of deviation 0.01 at the start; LARS has moved it, and the biases from 0.
    assert head["head.layers.head.bias"].abs().max() > 0


@pytest.mark.slow
def test_fine_tuning_starts_from_the_encoder_and_moves_it(exported, photos, tmp_path):
    """From the exported encoder."""
    output = mim_train(FINETUNE, tmp_path, briefly(photos, exported))
    assert f"from: {exported}" in output.replace("\n", "")
    # Its features are averaged and then normalised, where pre-training normalises at the end.
    assert complaints(output) == {
        "unexpected": ["ln1.bias", "ln1.weight"],
        "missing": ["ln2.bias", "ln2.weight"],
    }
    before, after = encoder_of(exported), encoder_of(tmp_path / "epoch_1.pth")
    shared = [name for name in before if before[name].dim() > 1]
    assert len(shared) > 20
    for name in shared:
        moved = (after[name] - before[name]).norm() / before[name].norm()
        assert moved < 0.1, name  # from another start it would be about 1.4
    moved = {name for name in shared if not torch.equal(before[name], after[name])}
    assert "patch_embed.projection.weight" in moved
    assert 0 <= accuracy(output) <= 100


def accuracy(output: str) -> float:
    return float(re.findall(r"Epoch\(val\) .*accuracy/top1: ([\d.]+)", output)[-1])


def slow_vote(train, labels, queries, k, temperature):
    """The same vote, written out."""
    predicted = []
    for query in queries:
        cosines = [row @ query / (np.linalg.norm(row) * np.linalg.norm(query)) for row in train]
        nearest = np.argsort(cosines)[::-1][:k]
        votes = {}
        for index in nearest:
            label = labels[index]
            votes[label] = votes.get(label, 0) + np.exp(cosines[index] / temperature)
        predicted.append(max(votes, key=votes.get))
    return np.array(predicted)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.07), (40, 1.0)])
def test_the_vote_is_that_of_the_paper(k, temperature):
    draw = np.random.default_rng(k)
    labels = draw.integers(0, 4, 60)
    train = (draw.normal(size=(60, 5)) + np.eye(5)[labels]) * draw.uniform(0.1, 9, (60, 1))
    queries = draw.normal(size=(50, 5)) + np.eye(5)[draw.integers(0, 4, 50)]
    expected = slow_vote(train, labels, queries, k, temperature)
    assert (vote(train, labels, queries, k, temperature) == expected).all()
    if k == 20:  # The temperature matters here, so that the comparison can see it.
        assert (vote(train, labels, queries, k, 10.0) != expected).any()


@pytest.mark.parametrize("k", [0, 6])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k expected 1 to 5.*got {k}"):
        vote(np.eye(5), np.arange(5), np.eye(5), k=k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature expected above 0"):
        vote(np.eye(5), np.arange(5), np.eye(5), k=1, temperature=temperature)


def photographs(root: Path) -> tuple[torch.Tensor, np.ndarray]:
    """The folder's images as mmpretrain's preprocessor makes them, read without mmpretrain."""
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    images, labels = [], []
    for label, folder in enumerate(sorted(root.iterdir())):
        for path in sorted(folder.iterdir()):
            picture = Image.fromarray(imread(path)).resize((PIXELS, PIXELS), Image.BILINEAR)
            images.append((np.asarray(picture) - mean) / std)
            labels.append(label)
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float(), np.array(labels)


@pytest.mark.slow
def test_knn_gives_what_timm_features_and_the_slow_vote_give(
    pretrained, exported, photos, tmp_path, capsys
):
    out = tmp_path / "knn.json"
    options = [f"{key}={value}" for key, value in small(photos).items()]
    arguments = ["--k", "5", "--out", str(out), "--cfg-options", *options]
    main([str(ROOT / LINEAR), str(pretrained), *arguments])
    result = json.loads(out.read_text())
    assert json.loads(re.search(r"^{.*^}", capsys.readouterr().out, re.M | re.S)[0]) == result
    assert result["checkpoint"] == str(pretrained)
    assert (result["k"], result["train_images"], result["val_images"]) == (5, 42, 14)

    export(pretrained, "timm", tmp_path / "timm.pth")
    encoder = timm.create_model(
        "vit_tiny_patch16_224", img_size=PIXELS, depth=6, num_classes=0,
        checkpoint_path=str(tmp_path / "timm.pth"),
    ).eval()  # fmt: skip
    with torch.no_grad():
        (train, labels), (queries, wanted) = (
            (encoder(images).numpy(), labels)
            for images, labels in (photographs(photos / "train"), photographs(photos / "val"))
        )
    predicted = slow_vote(train, labels, queries, 5, 0.07)
    assert result["accuracy"] == pytest.approx((predicted == wanted).mean())

    cfg = Config.fromfile(ROOT / LINEAR)
    cfg.merge_from_dict(small(photos))
    cfg.val_dataloader.dataset.data_root = cfg.train_dataloader.dataset.data_root = str(photos)
    again = evaluate(cfg, exported, k=5)
    assert again == {key: result[key] for key in again}
    # On the training images themselves each is its own nearest neighbour.
    cfg.val_dataloader.dataset.data_prefix = "train"
    assert evaluate(cfg, exported, k=1)["accuracy"] == 1.0


@pytest.mark.slow
def test_knn_refuses_an_encoder_of_another_shape(exported, capsys):
    vit_b = ROOT / BENCHMARKS / "vit-base-p16_8xb2048-linear-coslr-90e_in1k.py"
    with pytest.raises(SystemExit) as exit:
        main([str(vit_b), str(exported)])
    assert exit.value.code == 1
    assert "does not fit the config's encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["vit-base-p16_8xb2048-linear-coslr-90e_in1k", "vit-base-p16_8xb128-coslr-100e_in1k"]
)
def test_the_imagenet_benchmarks_are_mmpretrains_but_for_the_checkpoint(name):
    ours = unscoped(Config.fromfile(ROOT / f"{BENCHMARKS}/{name}.py").to_dict())
    assert ours.pop("custom_imports") == {"imports": ["amn_masking.adapters.mmpretrain"]}
    init = ours["model"]["backbone"]["init_cfg"]
    assert init.pop("checkpoint") == "work_dirs/mae_amn_vit-b/epoch_300.pth"
    assert init == {"type": "Pretrained", "prefix": "backbone."}
    stock = unscoped(get_config(f"mmpretrain::mae/benchmarks/{name}.py").to_dict())
    del stock["model"]["backbone"]["init_cfg"]["checkpoint"]
    assert ours == stock


def unscoped(node):
    """Without the ``_scope_`` that mmengine writes into what comes from another package."""
    if isinstance(node, dict):
        return {key: unscoped(value) for key, value in node.items() if key != "_scope_"}
    return [unscoped(value) for value in node] if isinstance(node, list) else node
