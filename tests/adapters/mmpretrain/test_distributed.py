"""Two processes: the real ``mim train`` on gloo, and DDP against one process."""

from __future__ import annotations

import datetime
import warnings

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import distributed, multiprocessing

from amn_masking.adapters.mmpretrain.runner.resume import load_from_local
from amn_masking.meters import PositionMeter
from tests.conftest import ROOT, thorough_only
from tests.helpers import small_mae
from tests.helpers.mim import TINY, data_options, mim_train, scalars, weights

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs/mmpretrain/mae_amn_vit-tiny_photos_2xcpu.py"
TWO = ("--launcher", "pytorch", "--gpus", "2")
METERS = {
    f"train/{name}"
    for name in ("adversarial_gain", "random_mask_error", "mask_distance", "position_entropy")
}
SAME_SEED = "all ranks draw their masks from one seed"


@pytest.fixture(scope="module")
def options(photos):
    options = TINY | data_options(photos)
    return options | {
        "train_dataloader.dataset.pipeline.1.scale": 64,
        "train_dataloader.batch_size": 7,
        "model.backbone.arch.num_layers": 1,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, options):
    """Both ranks' own account of one training with the shipped config, and the output."""
    folder = tmp_path_factory.mktemp("ranks")
    config = folder / "mine.py"
    config.write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        "custom_imports = dict(imports=['amn_masking.adapters.mmpretrain.runner.gloo',\n"
        "    'tests.helpers.rank_state'])\n"
        "custom_hooks = [dict(type=kind) for kind in ('MaskingPicturesHook', 'RandomStateHook',\n"
        "    'RankStateHook')] + [dict(type='MaskingMetersHook', interval=1)]\n"
    )
    more = {"model.masking.threshold.type": "tracking", "train_cfg.max_epochs": 3}
    more["optim_wrapper.clip_grad.max_norm"] = 1.0
    output = mim_train(config, folder, options | more, TWO)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)], folder, output


def test_the_ranks_end_with_the_same_weights_and_tracking_buffers(trained):
    (one, other), _, _ = trained
    assert one["wrapper"] == "MMDistributedDataParallel"
    assert one["weights"].keys() == other["weights"].keys()
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name
    assert one["weights"]["masking.threshold.offset"] != 0
    assert one["weights"]["masking.threshold.level"] != 0


def test_the_ranks_log_the_same_numbers_and_those_are_of_both(trained):
    (one, other), folder, _ = trained
    own = {"train/time", "train/data_time"}  # each process's own clock
    assert one["logged"].keys() == other["logged"].keys() >= {"train/reconstruction", *own}
    assert one["logged"].keys() >= METERS
    own.add("train/loss")  # mmengine's, which is each rank's own too
    for name in one["logged"].keys() - own:
        # Nothing was counted before the first step.
        assert len(one["logged"][name]) == 9 - (name == "train/position_entropy"), name
        assert torch.equal(one["logged"][name], other["logged"][name]), name
    ratios = torch.cat([one["masks"], other["masks"]], 1).mean(2)  # (steps, images)
    assert torch.allclose(one["logged"]["train/mask_ratio"].float(), ratios.mean(1))
    assert torch.equal(one["logged"]["train/mask_ratio_min"].float(), ratios.amin(1))
    assert torch.equal(one["logged"]["train/mask_ratio_max"].float(), ratios.amax(1))
    # At some step the extremes were the other rank's.
    assert not torch.equal(ratios.amin(1), one["masks"].mean(2).amin(1))
    assert not torch.equal(ratios.amax(1), one["masks"].mean(2).amax(1))
    # What rank 0 wrote to disk is that: loss = R + 0.5 A.
    rows = scalars(folder)
    assert len(rows) == 9
    for step, row in enumerate(rows):
        assert row["mask_ratio_max"] == pytest.approx(ratios[step].max().item())
    last = {name: numbers[-1].item() for name, numbers in one["logged"].items()}
    total = last["train/reconstruction"] + 0.5 * last["train/adversarial"]
    losses = [rank["logged"]["train/loss"][-1].item() for rank in (one, other)]
    assert sum(losses) / 2 == pytest.approx(total, rel=1e-5)


def test_the_meters_are_of_both_ranks(trained):
    """Equal on both ranks, as the test above holds, though each measures images of its own."""
    (one, other), folder, _ = trained
    positions, grid = PositionMeter(100), (4, 4)
    for step, expected in enumerate(one["logged"]["train/position_entropy"]):
        positions.update(torch.cat([one["masks"][step], other["masks"][step]]), grid)
        assert positions.entropy().item() == pytest.approx(expected.item(), abs=1e-5), step
    # And the checkpoint has those of both, the last step's included.
    positions.update(torch.cat([one["masks"][8], other["masks"][8]]), grid)
    saved = load_from_local(str(folder / "epoch_3.pth"))["masking_meters"]["positions"]
    assert torch.allclose(saved["frequencies"][grid], positions.frequencies[grid])


def test_the_ranks_see_other_images_and_draw_other_noise(trained):
    (one, other), _, output = trained
    for a, b in zip(one["images"], other["images"], strict=True):
        assert not torch.equal(a, b)
    assert not torch.equal(one["drawn"], other["drawn"])
    assert SAME_SEED not in output


@thorough_only
def test_one_seed_for_all_ranks_is_warned_of_and_the_shipped_config_runs(tmp_path, options):
    """By the shipped config's own name; one seed is mmengine's default."""
    config = str(CONFIG.relative_to(ROOT))
    options = options | {"randomness.diff_rank_seed": False}
    output = mim_train(config, tmp_path, options, TWO)
    assert SAME_SEED in output
    assert "diff_rank_seed=True" in output
    assert len(scalars(tmp_path)) == 3


@pytest.fixture
def fsdp(tmp_path):
    """mmengine's FlexibleRunner with FSDPStrategy, as in docs/distributed.md."""
    config = tmp_path / "mine.py"
    config.write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        "runner_type = 'FlexibleRunner'\n"
        "model_wrapper_cfg = None\n"
        "strategy = dict(type='FSDPStrategy', state_dict_cfg='full',\n"
        "    model_wrapper=dict(type='MMFullyShardedDataParallel', device_id='cpu'))\n"
        "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=1)\n"
        "custom_hooks = [dict(type='amn_masking.RandomStateHook')]\n"
    )
    return config


def test_fsdp_trains(tmp_path, options, fsdp):
    mim_train(fsdp, tmp_path, options, TWO)
    rows = scalars(tmp_path)
    assert len(rows) == 3
    assert all(row["loss"] > 0 and row["mask_ratio"] == 0.25 for row in rows)
    state = weights(tmp_path / "epoch_1.pth")
    assert state["masking.network.convolutions.0.weight"].shape == (32, 3, 3, 3)


@thorough_only
@pytest.mark.parametrize("hook", ["MaskingPicturesHook", "MaskingMetersHook"])
def test_hooks_that_need_the_whole_model_refuse_fsdp(tmp_path, options, fsdp, hook):
    fsdp.write_text(fsdp.read_text().replace("RandomStateHook", hook))
    output = mim_train(fsdp, tmp_path, options, TWO, fails=True)
    assert f"ValueError: {hook} expected a model that is whole on every device" in output
    assert not list(tmp_path.glob("*.pth"))


# DDP against one process: no files, no augmentation, the same images on both sides.

DETERMINISTIC = dict(type="straight_through", noise=0.0)
CASES = {
    "quantile": dict(),
    "raw logits": dict(standardise=False),
    "gate": dict(gate=True),
    "lambda 0": dict(loss=dict(lambda_adv=0.0)),
    "strength 0": dict(strength=0.0),
    "no share of the adversary yet": dict(strength=dict(start=0.0, end=1.0, begin=0.5)),
    "free counts": dict(threshold=dict(type="mean")),
    "a part is predicted": dict(prediction_ratio=0.5),
}
# Not where ranks weigh their patches by their own counts, or each draws what is left out.
ALIKE = [case for case in CASES if case not in ("free counts", "a part is predicted")]
BATCH = 4


def make(case):
    masking = dict(
        type="AdversarialMasking", estimator=DETERMINISTIC, random_share=0.0, **CASES[case]
    )
    model = small_mae.build(masking=masking)
    with torch.no_grad():
        for parameter in model.masking.parameters():
            parameter.mul_(3)  # an opinion, so that the images' scores differ
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2 * BATCH, 3, 32, 32, generator=generator)
    return model, images * torch.linspace(0.2, 2.0, 2 * BATCH).view(-1, 1, 1, 1)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def rank(rank, meeting, results):
    """One of two processes; writes its gradients of every case."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=120)
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timeout
    )
    found = {}
    for case in CASES:
        model, images = make(case)
        wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
        own = images[rank * BATCH : (rank + 1) * BATCH]
        losses = wrapped(own, [], mode="loss")
        wrapped.module.parse_losses(losses)[0].backward()
        found[case] = gradients(model)
        # Three steps more: DDP finds out in the next forward what the last backward left out.
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        for _ in range(3):
            wrapped.train_step(dict(inputs=own, data_samples=[]), optimizer)
    torch.save(found, f"{results}/gradients{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    multiprocessing.spawn(rank, (f"file://{folder}/meeting", str(folder)), nprocs=2)
    return [torch.load(folder / f"gradients{rank}.pt") for rank in (0, 1)]


def differences(found, case):
    """Largest relative difference to one process with all images: autoencoder, masking."""
    model, images = make(case)
    model.parse_losses(model(images, [], mode="loss"))[0].backward()
    parts = []
    for masking in (False, True):
        names = [n for n in gradients(model) if n.startswith("masking") == masking]
        one, two = (
            torch.cat([grads[name].flatten() for name in names])
            for grads in (gradients(model), found[0][case])
        )
        parts.append(((one - two).norm() / one.norm().clamp_min(1e-12)).item())
    return parts


@pytest.mark.parametrize("case", ALIKE)
def test_two_ranks_give_the_gradient_of_one_process_with_twice_the_batch(found, case):
    autoencoder, masking = differences(found, case)
    assert autoencoder < 1e-5
    assert masking < 1e-5
    for name, gradient in found[0][case].items():
        assert torch.equal(gradient, found[1][case][name]), name


@pytest.mark.parametrize("case", ["lambda 0", "strength 0", "no share of the adversary yet"])
def test_steps_without_an_adversary_neither_hang_nor_raise(found, case):
    masking = [g for name, g in found[0][case].items() if name.startswith("masking")]
    assert len(masking) == 6
    assert not any(gradient.any() for gradient in masking)
    assert any(g.any() for name, g in found[0]["quantile"].items() if name.startswith("masking"))


def test_ranks_that_leave_patches_out_end_with_one_gradient(found):
    one, other = (gradients["a part is predicted"] for gradients in found)
    assert all(torch.equal(gradient, other[name]) for name, gradient in one.items())
    assert any(gradient.any() for name, gradient in one.items() if name.startswith("masking"))
    assert one["neck.mask_token"].any()


def test_with_free_counts_the_stock_loss_is_a_mean_over_each_rank_s_patches(found):
    """As the docs say: R is mmpretrain's, and weighs a rank's patches by their number there."""
    autoencoder, masking = differences(found, "free counts")
    assert 1e-4 < autoencoder < 0.1
    assert masking < 1e-5
