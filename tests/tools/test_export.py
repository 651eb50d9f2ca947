"""The encoder taken home: the same features in mmpretrain and in timm, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy

import pytest
import timm
import torch
from safetensors.torch import load_file

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.config import Config
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS

import amn_masking.adapters.mmpretrain  # noqa: F401
from amn_masking.tools.checkpoints import read_checkpoint
from amn_masking.tools.export import export, main
from tests.conftest import ROOT
from tests.helpers import small_mae
from tests.helpers.runner import train

CONFIGS = ROOT / "configs/mmpretrain"
HIVIT = dict(
    backbone=dict(type="MAEHiViT", arch="tiny", img_size=64, patch_size=16),
    neck=dict(
        type="MAEPretrainDecoder",
        num_patches=16,
        embed_dim=384,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    ),
)


def built(model):
    """An initialised model, with every weight moved: fresh biases and norms are all alike."""
    model = MODELS.build(model)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def vit_b_recipe(arch, width):
    model = Config.fromfile(CONFIGS / "mae_amn_vit-b.py").model
    model.backbone.arch = arch
    # The decoder is left behind; a small one saves time.
    model.neck.update(embed_dim=width, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
    return model


def saved(model, path, **more):
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 1}, **more}, path)
    return path


def photos_recipe():
    return Config.fromfile(CONFIGS / "mae_amn_vit-tiny_photos.py").model


def stock(model):
    model.type = "MAE"
    del model.masking
    return model


@pytest.mark.parametrize(
    ("make", "name", "options", "size"),
    [
        pytest.param(
            lambda: vit_b_recipe("b", 768), "vit_base_patch16_224", {}, 224, id="vit-b",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: stock(vit_b_recipe("deit-t", 192)), "vit_tiny_patch16_224", {}, 224,
            id="vit-tiny, stock MAE",
        ),
        pytest.param(
            photos_recipe, "vit_tiny_patch16_224", dict(img_size=128, depth=6), 128, id="photos"
        ),
    ],
)  # fmt: skip
def test_the_features_are_the_same_everywhere(tmp_path, make, name, options, size):
    config = make()
    pretrained = built(deepcopy(config))
    checkpoint = saved(pretrained, tmp_path / "epoch_1.pth")
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        (expected,) = pretrained.backbone(images, mask=None)
    assert expected.shape == (2, (size // 16) ** 2 + 1, pretrained.backbone.embed_dims)
    assert expected.std() > 0.1

    for ending in ("pth", "safetensors"):
        out = tmp_path / f"encoder.{ending}"
        export(checkpoint, "timm", out)
        # Strict: timm refuses a missing or an unexpected name.
        encoder = timm.create_model(name, num_classes=0, checkpoint_path=str(out), **options)
        with torch.no_grad():
            features = encoder.eval().forward_features(images)
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)

    out = tmp_path / "mmpretrain.pth"
    export(checkpoint, "mmpretrain", out)
    backbone = {key: config.backbone[key] for key in ("arch", "img_size") if key in config.backbone}
    init = dict(type="Pretrained", checkpoint=str(out), prefix="backbone.")
    encoder = MODELS.build(
        dict(type="VisionTransformer", out_type="raw", init_cfg=init, patch_size=16, **backbone)
    )
    encoder.init_weights()
    encoder.eval()
    with torch.no_grad():
        (features,) = encoder(images)
    assert torch.equal(features, expected)


def test_nothing_but_the_encoder_is_in_the_file(tmp_path):
    model = built(small_mae.config(type="amn_masking.MAE", masking=dict(type="AdversarialMasking")))
    checkpoint = saved(model, tmp_path / "epoch_1.pth", optimizer={"state": {}}, message_hub={})
    for to, prefix in (("mmpretrain", "backbone."), ("timm", "")):
        out = tmp_path / f"{to}.pth"
        written = export(checkpoint, to, out)
        content = torch.load(out, weights_only=True)
        if to == "mmpretrain":
            assert list(content) == ["state_dict"]
            content = content["state_dict"]
        assert content.keys() == written.keys()
        assert all(name.startswith(prefix) for name in content)
        numbers = sum(weight.numel() for weight in content.values())
        assert numbers == sum(weight.numel() for weight in model.backbone.parameters())
        # No storage of anything else hangs on a tensor.
        assert out.stat().st_size < 4 * numbers + 40_000


def test_mff_leaves_its_projections_behind(tmp_path):
    changes = small_mae.config()["backbone"] | dict(
        type="MFFViT", out_type="raw", out_indices=[0, 1]
    )
    model = built(small_mae.config(backbone=changes))
    assert any("proj_layers" in name for name in model.state_dict())
    written = export(saved(model, tmp_path / "epoch_1.pth"), "timm", tmp_path / "out.pth")
    encoder = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2, num_classes=0
    ).eval()
    encoder.load_state_dict(written)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        # Not MFFViT's own forward, which masks whatever it is told.
        expected = VisionTransformer.forward(model.backbone, images)[-1]
        torch.testing.assert_close(encoder.forward_features(images), expected, atol=1e-5, rtol=0)


def test_averaged_weights_are_taken_where_the_run_had_an_ema_hook(photos_config, tmp_path):
    hook = dict(type="EMAHook", momentum=0.5)
    photos_config.model.masking.update(mask_ratio=0.5, prediction_ratio=0.25)  # some left out
    runner = train(photos_config, custom_hooks=[hook])
    (averages,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    averaged, raw = averages.ema_model.module.backbone, runner.model.backbone
    written = export(runner.message_hub.get_info("last_ckpt"), "mmpretrain", tmp_path / "out.pth")
    written = {name.removeprefix("backbone."): weight for name, weight in written.items()}
    assert written.keys() == averaged.state_dict().keys()
    for name, weight in averaged.state_dict().items():
        assert torch.equal(written[name], weight), name
    assert not torch.equal(written["ln1.weight"], raw.ln1.weight)
    # These are what a Runner that tests or starts from the file gets.
    fresh = deepcopy(runner.model)
    fresh.load_state_dict(read_checkpoint(runner.message_hub.get_info("last_ckpt"))["state_dict"])
    assert torch.equal(fresh.backbone.ln1.weight, averaged.ln1.weight)


def command(*arguments, **options):
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "amn_masking.tools.export", *map(str, arguments)], cwd=ROOT,
        capture_output=True, text=True, **options,
    )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    model = built(small_mae.config(type="amn_masking.MAE", masking=dict(type="AdversarialMasking")))
    return saved(model, tmp_path / "epoch_1.pth")


@pytest.mark.slow
def test_the_command_runs_without_mmengine_and_reads_the_runners_own_file(photos_config, tmp_path):
    runner = train(photos_config, custom_hooks=[])
    path = runner.message_hub.get_info("last_ckpt")
    assert "mmengine.logging.history_buffer.HistoryBuffer" in (
        torch.serialization.get_unsafe_globals_in_checkpoint(path)
    )
    # An empty module in mmengine's place: an import of anything from it fails.
    for name in ("mmengine", "mmpretrain", "mmcv", "timm"):
        (tmp_path / "none").mkdir(exist_ok=True)
        (tmp_path / f"none/{name}.py").write_text("raise ImportError('not installed')")
    paths = os.pathsep.join([str(tmp_path / "none"), str(ROOT)])
    out = tmp_path / "out.safetensors"
    done = command(path, "--to", "timm", out, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert "wrote" in done.stdout
    assert torch.equal(load_file(out)["norm.weight"], runner.model.backbone.ln1.weight)


def test_an_existing_file_is_kept_unless_forced(checkpoint, tmp_path):
    out = tmp_path / "out.pth"
    out.write_text("precious")
    with pytest.raises(FileExistsError, match="say --force"):
        export(checkpoint, "timm", out)
    assert out.read_text() == "precious"
    export(checkpoint, "timm", out, force=True)
    assert "norm.weight" in torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_disk_that_fills_up_leaves_no_half_file(checkpoint, tmp_path, ending):
    resource = pytest.importorskip("resource", reason="limits on file size are POSIX")
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / f"out.{ending}"
    out.write_text("precious")
    done = command(
        checkpoint, "--to", "timm", out, "--force",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert [path.name for path in folder.iterdir()] == [out.name]
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: small_mae.config(**HIVIT), r"expected the weights of a MAEViT.*--to mmpretrain"),
        (
            lambda: small_mae.config(
                backbone=small_mae.config()["backbone"]
                | dict(layer_cfgs=dict(layer_scale_init_value=0.1))
            ),
            r"has \['layers.0.attn.gamma1.weight'",
        ),
        (
            lambda: small_mae.config(
                backbone=small_mae.config()["backbone"] | dict(layer_cfgs=dict(qkv_bias=False))
            ),
            r"lacks \['layers.0.attn.qkv.bias'",
        ),
    ],
    ids=["hivit", "layer-scale", "no-qkv-bias"],
)
def test_what_timm_cannot_compute_is_refused(tmp_path, model, message):
    path = saved(built(model()), tmp_path / "epoch_1.pth")
    with pytest.raises(ValueError, match=message):
        export(path, "timm", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
    export(path, "mmpretrain", tmp_path / "out.pth")


@pytest.mark.parametrize(
    ("to", "out", "message"),
    [
        ("timm", "out.bin", r"ends in \.pth or \.safetensors for timm, got .*out\.bin"),
        (
            "mmpretrain",
            "out.safetensors",
            r"\.pth for mmpretrain.*cannot read safetensors",
        ),
        ("onnx", "out.pth", "expected 'mmpretrain' or 'timm', got 'onnx'"),
    ],
)
def test_another_target_is_refused(checkpoint, tmp_path, to, out, message):
    with pytest.raises(ValueError, match=message):
        export(checkpoint, to, tmp_path / out)


def test_missing_places_are_refused_and_the_command_says_so_in_a_line(checkpoint, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        export(tmp_path / "gone.pth", "timm", tmp_path / "out.pth")
    with pytest.raises(FileNotFoundError, match="expected a folder to write to"):
        export(checkpoint, "timm", tmp_path / "gone/out.pth")
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path / "gone.pth"), "--to", "timm", str(tmp_path / "out.pth")])
    assert exit.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: expected a checkpoint file")
    assert printed.err.count("\n") == 1
