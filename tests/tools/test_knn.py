"""k-NN on what the real pre-training left, beside timm's features and a slow vote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from imageio.v3 import imread
from mmengine.config import Config
from PIL import Image

from amn_masking.tools.export import export
from amn_masking.tools.knn import evaluate, main, vote
from tests.conftest import ROOT
from tests.helpers.downstream import BENCHMARKS, LINEAR, PIXELS, small


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
    given = [torch.from_numpy(values) for values in (train, labels, queries)]
    assert (vote(*given, k, temperature).numpy() == expected).all()
    if k == 20:  # The temperature matters here, so that the comparison can see it.
        assert (vote(*given, k, 10.0).numpy() != expected).any()


def test_more_queries_than_are_compared_at_a_time():
    draw = torch.Generator().manual_seed(0)
    train, queries = (torch.randn(count, 4, generator=draw) for count in (50, 1100))
    labels = torch.randint(3, (50,), generator=draw)
    expected = slow_vote(train.numpy(), labels.numpy(), queries.numpy(), 5, 0.07)
    assert (vote(train, labels, queries, 5).numpy() == expected).mean() > 0.998  # rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("temperature", [1e-4, 1e-30])
def test_a_small_temperature_lets_the_nearest_decide_alone(temperature, dtype):
    queries = -torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    train, labels = torch.eye(4, dtype=dtype), torch.tensor([7, 3, 3, 5], dtype=torch.int32)
    nearest = F.normalize(queries.float(), dim=1).argmax(1)  # though it is far
    assert torch.equal(vote(train, labels, queries, 4, temperature), labels[nearest].long())


def test_no_queries_have_no_labels():
    assert vote(torch.eye(5), torch.arange(5), torch.empty(0, 5), k=2).shape == (0,)


@pytest.mark.parametrize(
    "labels", [torch.arange(4), torch.arange(6), torch.arange(-1, 4), torch.arange(5.0)]
)
def test_labels_of_another_kind_or_number_are_refused(labels):
    with pytest.raises(ValueError, match="labels expected 5 integers of at least 0"):
        vote(torch.eye(5), labels, torch.eye(5), k=1)


@pytest.mark.parametrize("name", ["training images", "queries"])
def test_features_that_are_not_finite_are_refused(name):
    given = {"training images": torch.eye(5), "queries": torch.eye(5)}
    given[name][2, 2] = float("nan")
    with pytest.raises(ValueError, match=f"features of the {name} are not finite"):
        vote(given["training images"], torch.arange(5), given["queries"], k=1)


@pytest.mark.parametrize("k", [0, 6])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k expected 1 to 5.*got {k}"):
        vote(torch.eye(5), torch.arange(5), torch.eye(5), k=k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature expected above 0"):
        vote(torch.eye(5), torch.arange(5), torch.eye(5), k=1, temperature=temperature)


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
