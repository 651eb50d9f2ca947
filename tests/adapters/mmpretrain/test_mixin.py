"""The mmpretrain adapter, on real mmpretrain models in this process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmengine.registry import MODELS
from mmpretrain.models.losses import PixelReconstructionLoss
from mmpretrain.models.selfsup import MAE as StockMAE
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

import amn_masking
from amn_masking import AdversarialMasking, CombinedAdversarialLoss
from amn_masking.strategies import ShuffledMasking
from tests.helpers import draws
from tests.helpers.small_mae import build, config, step
from tests.methods.matrix import build as small
from tests.methods.matrix import step as small_step
from tests.methods.small_methods import SMALL

AMN_MAE = MODELS.get("amn_masking.MAE")

LEARNED = dict(type="AdversarialMasking", random_share=0.0)


def assert_same_gradients(one, other, only=None):
    names = [name for name in one if only is None or only(name)]
    assert names
    for name in names:
        assert torch.equal(one[name], other[name]), name


def of_autoencoder(name):
    return not name.startswith("masking.")


@pytest.mark.parametrize("cls", [AMN_MAE, StockMAE])
def test_types_are_what_the_registries_say(cls):
    assert issubclass(AMN_MAE, cls)
    assert MMPRETRAIN_MODELS.get("AdversarialMasking") is AdversarialMasking
    assert MMPRETRAIN_MODELS.get("CombinedAdversarialLoss") is CombinedAdversarialLoss
    assert MODELS.get("amn_masking.RandomMasking") is amn_masking.RandomMasking


def test_without_masking_it_is_stock_bit_for_bit():
    stock, ours = build("MAE"), build()
    assert type(stock) is not type(ours)
    assert list(stock.state_dict()) == list(ours.state_dict())
    for a, b in zip(stock.state_dict().values(), ours.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    (one, grads), (other, our_grads) = step(stock), step(ours)
    assert list(other) == list(one) == ["loss"]
    assert torch.equal(one["loss"], other["loss"])
    assert grads.keys() == our_grads.keys()
    assert_same_gradients(grads, our_grads)


def test_that_test_can_fail():
    (one, grads), (other, our_grads) = step(build("MAE")), step(build(), seed=5)
    assert not torch.equal(one["loss"], other["loss"])
    assert any(not torch.equal(grads[name], our_grads[name]) for name in grads)


def test_random_masking_is_stock_bit_for_bit():
    (one, grads), (other, ours) = (
        step(build("MAE")),
        step(build(masking=dict(type="RandomMasking"))),
    )
    assert torch.equal(one["loss"], other["loss"])
    assert_same_gradients(grads, ours)
    assert "adversarial" not in other


def test_lambda_zero_is_stock_under_the_same_mask_bit_for_bit():
    """The stock model is given the learned mask by hand."""
    ours = build(masking=dict(LEARNED, loss=dict(lambda_adv=0.0)))
    made, kept = ours.masking.forward, []
    ours.masking.forward = lambda images: kept.append(made(images)) or kept[-1]
    losses, gradients = step(ours)

    stock = build("MAE")
    assert type(stock) is StockMAE
    (patch_mask,) = kept
    stock.backbone.random_masking = lambda x, ratio: (
        x.gather(1, patch_mask.ids_keep[:, :, None].expand(-1, -1, x.shape[2])),
        patch_mask.mask,
        patch_mask.ids_restore,
    )
    expected, stock_gradients = step(stock)
    assert torch.equal(losses["loss"], expected["loss"])
    assert_same_gradients(stock_gradients, gradients)
    assert all(not gradients[name].any() for name in gradients if not of_autoencoder(name))


def test_the_encoder_sees_exactly_the_strategy_s_visible_patches():
    model = build(masking=LEARNED)
    seen = {}
    made = model.masking.forward

    def keep(images, generator=None):
        seen["mask"] = made(images, generator)
        return seen["mask"]

    model.masking.forward = keep
    model.backbone.patch_embed.register_forward_hook(lambda m, a, out: seen.update(tokens=out[0]))
    model.backbone.layers[0].register_forward_pre_hook(lambda m, a: seen.update(entered=a[0]))
    model.neck.register_forward_pre_hook(lambda m, a: seen.update(ids_restore=a[1]))
    model.head.loss_module.register_forward_pre_hook(lambda m, a: seen.update(loss_mask=a[2]))
    step(model)
    mask = seen["mask"].mask
    tokens = seen["tokens"] + model.backbone.pos_embed[:, 1:]
    assert seen["entered"].shape[1] == 1 + 4
    for row in range(3):
        visible = tokens[row][mask[row] == 0]
        entered = seen["entered"][row, 1:]
        assert {tuple(t.tolist()) for t in entered} == {tuple(t.tolist()) for t in visible}
    assert torch.equal(seen["loss_mask"], mask)
    assert torch.equal(seen["ids_restore"], seen["mask"].ids_restore)


def test_head_s_own_combined_loss_equals_the_strategy_s():
    """The same total and gradients, wherever the loss stands; not in both places."""
    by_strategy, one = step(build(masking=dict(LEARNED, loss=dict(lambda_adv=0.7))))
    head = config()["head"] | dict(
        loss=dict(type="CombinedAdversarialLoss", criterion="L2", lambda_adv=0.7)
    )
    by_head, other = step(build(masking=LEARNED, head=head))
    with pytest.raises(ValueError, match="both have a lambda_adv, of which the head's would count"):
        build(
            masking=dict(LEARNED, loss=dict(lambda_adv=9.0)),
            head=head,
        )
    assert by_head.keys() == by_strategy.keys()
    for key in by_head:
        assert torch.allclose(by_head[key], by_strategy[key], rtol=1e-6), key
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name], other[name], atol=1e-8, rtol=1e-4), name


def test_combined_loss_in_the_head_without_masking_is_one_plus_lambda_times_stock():
    head = config()["head"] | dict(loss=dict(type="CombinedAdversarialLoss", lambda_adv=0.5))
    assert torch.allclose(step(build(head=head))[0]["loss"], 1.5 * step(build())[0]["loss"])


def test_the_log_holds_the_parts_and_they_add_up():
    losses, _ = step(build(masking=dict(LEARNED, loss=dict(lambda_adv=0.5))))
    total = losses["reconstruction"] + 0.5 * losses["adversarial"]
    assert torch.allclose(losses["loss"], total)
    for key in ("mask_ratio", "mask_ratio_min", "mask_ratio_max"):
        assert losses[key] == 0.75
    assert losses["score_spread"] > 0
    assert losses["strength"] == 1
    assert all("loss" not in key for key in losses if key != "loss")
    assert not any(losses[key].requires_grad for key in losses if key != "loss")


def test_gradient_reaches_the_masking_network_and_turns_with_the_strength():
    _, up = step(build(masking=dict(LEARNED, strength=1.0)))
    _, down = step(build(masking=dict(LEARNED, strength=-1.0)))
    names = [name for name in up if not of_autoencoder(name)]
    assert len(names) == 6
    for name in names:
        assert torch.equal(up[name], -down[name])
    assert any(up[name].abs().max() > 0 for name in names)
    assert_same_gradients(up, down, of_autoencoder)


def test_nothing_is_left_on_the_method_afterwards():
    model = build(masking=LEARNED)
    step(model)
    assert "random_masking" not in vars(model.backbone)
    assert not model.head.loss_module._forward_pre_hooks
    model.neck.forward = lambda *a: (_ for _ in ()).throw(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        step(model)
    assert "random_masking" not in vars(model.backbone)
    assert not model.head.loss_module._forward_pre_hooks


def test_the_method_s_own_settings_are_the_defaults():
    head = config()["head"] | dict(loss=dict(type="PixelReconstructionLoss", criterion="L1"))
    masking = build(masking=dict(type="AdversarialMasking", network=dict(channels=4)), head=head)
    masking = masking.masking
    assert masking.patch_size == (8, 8)
    assert masking.mask_ratio == 0.75
    assert masking.loss.criterion == "L1"
    assert masking.network.convolutions[0].out_channels == 4
    own = build(masking=dict(type="AdversarialMasking", mask_ratio=0.5)).masking
    assert own.mask_ratio == 0.5
    losses, _ = step(build(masking=dict(type="AdversarialMasking", mask_ratio=0.5)))
    assert losses["mask_ratio"] == 0.5


def test_a_strategy_object_works_too():
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=8)
    assert build(masking=masking).masking is masking


def as_object(model, **given):
    """A strategy of the same weights as that of a model, which was made from a config."""
    strategy = AdversarialMasking(patch_size=model.masking.patch_size, **given)
    strategy.load_state_dict(model.masking.state_dict())
    return strategy


@pytest.mark.parametrize("label", SMALL)
@pytest.mark.parametrize("wrap", [None, ShuffledMasking])
def test_an_object_takes_the_method_s_ratio_and_loss_as_a_config_does(label, wrap, photos):
    config = dict(type="AdversarialMasking")
    if wrap is not None:
        config = dict(type=wrap.__name__, masking=config)
    model, inputs, samples = small(label, photos, masking=config)
    expected = small_step(model, inputs, samples)
    inner = model if wrap is None else model.masking
    strategy = as_object(inner) if wrap is None else wrap(as_object(inner))
    model, inputs, samples = small(label, photos, masking=strategy)
    found = small_step(model, inputs, samples)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_an_object_follows_the_method_s_ratio_unless_it_was_given_one():
    backbone = config()["backbone"] | dict(mask_ratio=0.4)
    for wrap in (lambda masking: masking, ShuffledMasking):
        model = build(masking=wrap(AdversarialMasking(patch_size=8)), backbone=backbone)
        assert step(model)[0]["mask_ratio"] == 0.4375
        model.backbone.mask_ratio = 0.75
        assert step(model)[0]["mask_ratio"] == 0.75
        model = build(masking=wrap(AdversarialMasking(0.5, 8)), backbone=backbone)
        assert step(model)[0]["mask_ratio"] == 0.5
        model.backbone.mask_ratio = 0.75
        with pytest.raises(ValueError, match="has its own, which counts"):
            step(model)


def test_a_loss_that_was_given_to_an_object_stays():
    head = config()["head"] | dict(loss=dict(type="PixelReconstructionLoss", criterion="L1"))
    for loss, criterion in ((None, "L1"), (dict(lambda_adv=0.5), "L2")):
        masking = AdversarialMasking(patch_size=8, loss=loss)
        assert build(masking=masking, head=head).masking.loss.criterion == criterion


def test_a_loss_that_was_changed_on_an_object_stays():
    for change in (dict(lambda_adv=3.0), dict(score_weighted=False)):
        masking = AdversarialMasking(patch_size=8)
        for name, value in change.items():
            setattr(masking.loss, name, value)
        kept = build(masking=masking).masking.loss
        assert all(getattr(kept, name) == value for name, value in change.items())


def test_without_data_samples_it_trains_as_stock_does():
    images = torch.randn(2, 3, 32, 32)
    assert build(masking=dict(type="AdversarialMasking"))(images, mode="loss")["loss"].isfinite()


def test_features_do_not_depend_on_the_strategy():
    images = torch.randn(2, 3, 32, 32)
    plain, ours = build().eval(), build(masking=dict(type="AdversarialMasking")).eval()
    assert torch.equal(plain.extract_feat(images)[0], ours.extract_feat(images)[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(masking=dict(type="MAEViT")), TypeError, "MAEViT is not a masking strategy"),
        (dict(masking=dict(type="Nothing")), ValueError, "registered strategy.*got type 'Nothing'"),
        (dict(masking=dict(mask_ratio=0.5)), ValueError, "registered strategy.*got type None"),
        (
            dict(masking=dict(type="AdversarialMasking", patch_size=4)),
            ValueError,
            r"patch_size=\(4, 4\), but MAE works on patches of \(8, 8\).*leave patch_size out",
        ),
        (
            dict(masking=dict(type="AdversarialMasking", loss=dict(reconstruct="all"))),
            ValueError,
            "reconstruct='all'.*put it there",
        ),
        (
            dict(masking=dict(type="AdversarialMasking", network=dict(in_channels=1))),
            ValueError,
            r"\(B, 1, H, W\)",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        step(build(**changes))


@given(
    draws.masks(grids=draws.grids_of_images),
    st.sampled_from(["L1", "L2"]),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
)
def test_with_lambda_zero_the_loss_is_pixel_reconstruction_loss(case, criterion, channel, masked):
    mask, grid = case
    ours = CombinedAdversarialLoss(criterion, lambda_adv=0.0, channel=channel)
    stock = PixelReconstructionLoss(criterion, channel)
    shapes = [(*mask.shape, 6), (mask.shape[0], 3, 2 * grid[0], 2 * grid[1])]
    for shape in shapes:
        pred = torch.randn(shape, requires_grad=True)
        target, m = torch.randn(shape), None
        patch_mask = amn_masking.PatchMask.from_mask(mask, grid)
        if masked:
            m = mask if len(shape) == 3 else patch_mask.pixel_mask(*shape[-2:])
        expected = stock(pred, target, m)
        (wanted,) = torch.autograd.grad(expected, pred)
        for given_mask in (m, patch_mask) if masked else (m,):
            got = ours(pred, target, given_mask)
            assert torch.equal(got, expected)
            (gradient,) = torch.autograd.grad(got, pred)
            assert torch.equal(gradient, wanted)
