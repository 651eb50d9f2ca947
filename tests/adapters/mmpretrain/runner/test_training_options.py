"""What users of mmengine's Runner switch on: AMP, accumulation, clipping, EMA, and so on."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.optim import OptimWrapper

from amn_masking.adapters.mmpretrain.runner.resume import load_from_local
from amn_masking.losses import CombinedAdversarialLoss
from tests.helpers import small_mae
from tests.helpers.loud import MASKING, assert_equal, change, logged, states
from tests.helpers.runner import train

# Of 16 patches 4 are seen; of the others all are predicted, or 4, and the decoder is spared 8.
PREDICTED = pytest.mark.parametrize("predicted", [None, 0.25])


@pytest.mark.parametrize("threshold", ["quantile", "tracking"])
def test_under_autocast_the_mask_and_its_gradient_are_made_in_float32(threshold):
    masking = dict(type="AdversarialMasking", threshold=dict(type=threshold), random_share=0.0)
    model = small_mae.build(masking=masking)
    inside = {}
    model.masking.network.register_forward_hook(
        lambda m, i, out: inside.update(cast=torch.is_autocast_enabled("cpu"), scores=out.dtype)
    )
    model.masking.register_forward_hook(lambda m, i, out: inside.update(patch_mask=out))
    model.backbone.layers[0].attn.qkv.register_forward_hook(
        lambda m, i, out: inside.update(encoder=out.dtype)
    )
    model.head.loss_module.register_forward_hook(
        lambda m, args, out: inside.update(pred=args[0].detach(), target=args[1])
    )
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(torch.randn(3, 3, 32, 32), [])
    assert inside["encoder"] == torch.bfloat16
    assert inside["scores"] == torch.float32
    assert not inside["cast"]
    patch_mask = inside["patch_mask"]
    assert patch_mask.mask.dtype == patch_mask.learned.logits.dtype == torch.float32
    if threshold == "quantile":
        assert (patch_mask.mask.sum(1) == 12).all()
    # The adversarial term is that of the prediction, in float32 or better.
    exact = CombinedAdversarialLoss().terms(
        inside["pred"].double(), inside["target"].double(), patch_mask.detach()
    )
    assert losses["loss"].dtype == losses["adversarial"].dtype == torch.float32
    assert losses["adversarial"].item() == pytest.approx(exact.adversarial.item(), rel=1e-4)
    total = exact.reconstruction + 0.5 * exact.adversarial
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-4)
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.dtype == torch.float32, name


def test_amp_trains_and_a_scale_changes_neither_network(cfg):
    """Scaled by the GradScaler and unscaled again, the reversed gradient as the other: a power of
    two leaves no trace.
    """
    cfg.optim_wrapper.type = "CpuAmpOptimWrapper"
    cfg.optim_wrapper.clip_grad = dict(max_norm=0.1)
    plain = states(train(cfg, **{"optim_wrapper.init_scale": 1.0}))
    scaled = states(train(cfg, **{"optim_wrapper.init_scale": 2.0**12}))
    assert_equal(plain[-1], scaled[-1], plain[-1].keys())
    for masking in (False, True):
        assert change(plain[0], plain[-1], masking) > 0
    cfg.optim_wrapper.type = "OptimWrapper"
    in_float32 = states(train(cfg))
    assert not all(torch.equal(plain[-1][n], in_float32[-1][n]) for n in plain[-1])


@PREDICTED
def test_in_bfloat16_the_gradients_are_those_of_float32_but_for_its_precision(predicted):
    """The right sign and size, for both networks: noise and mask are the same."""
    masking = dict(type="AdversarialMasking", prediction_ratio=predicted, random_share=0.0)
    model = small_mae.build(masking=masking)
    _, exact = small_mae.step(model)
    with torch.autocast("cpu", torch.bfloat16):
        _, rough = small_mae.step(model)
    for masking in (False, True):
        names = [name for name in exact if name.startswith(MASKING) == masking]
        a, b = (torch.cat([g[n].flatten() for n in names]) for g in (exact, rough))
        assert not torch.equal(a, b)
        assert torch.cosine_similarity(a, b, dim=0) > 0.99
        assert (a.norm() / b.norm()).item() == pytest.approx(1, abs=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mmengine's AMP needs an accelerator")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_amp_wrapper_of_mmengine_trains_both_networks(cfg, dtype):
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.dtype = dtype
    cfg.optim_wrapper.clip_grad = dict(max_norm=0.1)
    runner = train(cfg)
    first, *_, last = states(runner)
    for masking in (False, True):
        assert 0 < change(first, last, masking) < float("inf")
    assert all(loss > 0 for loss in logged(runner, "loss"))


@PREDICTED
def test_accumulation_gives_both_networks_the_gradient_of_the_mean_loss(predicted):
    masking = dict(type="AdversarialMasking", prediction_ratio=predicted, random_share=0.0)
    model = small_mae.build(masking=masking)
    batches = torch.randn(2, 3, 3, 32, 32)
    start = copy.deepcopy(model.state_dict())
    wanted = {}
    for seed, images in enumerate(batches):
        model.zero_grad()
        torch.manual_seed(seed)
        model.parse_losses(model(images, [], mode="loss"))[0].backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                wanted[name] = wanted.get(name, 0) + p.grad / 2
    model.zero_grad()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    for seed, images in enumerate(batches):
        assert_equal(start, model.state_dict(), start.keys())
        torch.manual_seed(seed)
        model.train_step(dict(inputs=images, data_samples=[]), wrapper)
    for name, gradient in wanted.items():
        moved = start[name] - model.state_dict()[name]
        assert torch.allclose(moved, gradient, atol=1e-6, rtol=1e-3), name
        assert not name.startswith(MASKING) or name.endswith("4.bias") or gradient.any(), name


@pytest.mark.parametrize("update_buffers", [False, True])
def test_ema_averages_the_masking_network_and_keeps_its_buffers(cfg, tmp_path, update_buffers):
    ema = dict(type="EMAHook", momentum=0.25, update_buffers=update_buffers)
    cfg.custom_hooks = [*cfg.custom_hooks, ema]
    cfg.default_hooks.checkpoint.interval = 1
    runner = train(cfg, **{"model.masking.threshold.type": "tracking"})
    steps = states(runner)[1:]
    saved = load_from_local(str(tmp_path / "epoch_1.pth"))
    for name, last in steps[-1].items():
        mean = steps[0][name]
        if update_buffers or "threshold" not in name:
            for step in steps[1:]:
                mean = mean + 0.25 * (step[name] - mean)
        else:
            mean = last
        assert torch.allclose(saved["state_dict"][name], mean, atol=1e-6), name
        assert torch.equal(saved["ema_state_dict"][f"module.{name}"], last), name
    assert not torch.equal(steps[0]["masking.threshold.offset"], last_offset(steps))
    # After a training step too a model can be copied: no tensor of its graph is kept on it.
    copy.deepcopy(runner.model)


def last_offset(steps):
    return steps[-1]["masking.threshold.offset"]


# Checkpointing of activations, compilation


def test_activation_checkpointing_changes_nothing(cfg):
    stock = states(train(cfg))[-1]
    saving = train(cfg, activation_checkpointing=["backbone.layers.0"])
    assert "forward" in vars(saving.model.backbone.layers[0])
    assert_equal(stock, states(saving)[-1], stock.keys())


@pytest.mark.slow
def test_compile_trains_as_without(cfg):
    """``cfg.compile``: mmengine compiles the whole train_step, optimizer included. The decoder is
    spared patches: of all that is done around stock's step that is the most.
    """
    torch._dynamo.reset()
    cfg.model.masking.update(mask_ratio=0.75, prediction_ratio=0.25)
    sgd = dict(_delete_=True, type="SGD", lr=0.1, weight_decay=0.05)
    cfg.merge_from_dict({"optim_wrapper.optimizer": sgd, "train_dataloader.batch_size": 21})
    stock = states(train(cfg))
    compiled = states(train(cfg, compile=dict(backend="aot_eager")))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for masking in (False, True):
        assert change(stock[0], compiled[-1], masking) > 0
    for name, weight in stock[-1].items():
        assert torch.allclose(compiled[-1][name], weight, atol=1e-5), name


@pytest.mark.slow
def test_the_tracking_threshold_keeps_its_ratio_while_the_images_of_a_batch_differ(cfg):
    cfg.model.masking.threshold = dict(type="tracking")
    cfg.train_cfg.max_epochs = 20
    runner = train(cfg, custom_hooks=[])
    ratios, least, most = (logged(runner, f"mask_ratio{x}") for x in ("", "_min", "_max"))
    assert len(ratios) == 60
    assert abs(sum(ratios[20:]) / 40 - 0.25) < 0.02
    assert all(one < other for one, other in zip(least, most, strict=True))
    state = load_from_local(f"{cfg.work_dir}/epoch_20.pth")["state_dict"]
    assert state["masking.threshold.offset"] == runner.model.masking.threshold.offset != 0
