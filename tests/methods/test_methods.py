"""Every method of mmpretrain under a strategy: its stock recipe, smaller, on real photographs."""

from __future__ import annotations

import csv

import pytest
import torch

from tests.helpers.tables import narrow

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from mmpretrain.models import selfsup

from amn_masking.adapters.mmpretrain import METHODS
from amn_masking.losses import CombinedAdversarialLoss
from tests.methods.matrix import (
    CHECKS,
    LEARNED,
    MEASURED,
    RESULTS,
    SUPPORT,
    build,
    error_exact,
    hidden_unseen,
    left_out,
    mask_exact,
    random_identical,
    step,
    support,
    table,
)
from tests.methods.small_methods import SMALL

FREE = dict(type="AdversarialMasking", threshold=dict(type="mean"), standardise=False)
RANDOM = ("MAE", "MAE (HiViT)", "MFF", "EVA", "iTPN (pixel)", "SparK")
EQUAL = ("MAE (HiViT)", "MILAN", "CAE", "iTPN (pixel)")
SAVED = ("MAE", "MAE (HiViT)", "MFF", "EVA", "MILAN", "iTPN (pixel)")
LEFT_OUT = {label: "decoder saved" if label in SAVED else "loss only" for label in SMALL}
LEFT_OUT["MixMIM"] = "refused"


def test_every_method_has_a_row():
    ours = {file.split("/")[0] for file, _, _ in SMALL.values()}
    assert {"beit", "beitv2", "simmim", "mixmim", "spark"} < ours
    assert len(METHODS) == 11
    assert all(issubclass(cls, getattr(selfsup, name)) for name, cls in METHODS.items())


@pytest.mark.slow
@pytest.mark.parametrize("label", SMALL)
@pytest.mark.parametrize("check", CHECKS)
def test_matrix(label, check, photos):
    """One cell of docs/results/methods.md; see tests/methods/matrix.py."""
    assert CHECKS[check](label, photos)


@pytest.mark.parametrize("label", SMALL)
def test_random_masking_is_the_stock_method_where_that_masks_at_random(label, photos):
    assert random_identical(label, photos) == (label in RANDOM)


@pytest.mark.parametrize("label", SMALL)
@pytest.mark.parametrize("kind", ["AdversarialMasking", "RandomMasking"])
def test_no_path_leads_from_a_masked_pixel_to_the_prediction(label, kind, photos):
    masking = dict(type=kind, mask_ratio=0.5)
    assert hidden_unseen(label, photos, masking=masking) == (label != "iTPN (clip)")


@pytest.mark.parametrize("label", SMALL)
def test_what_is_left_out_keeps_its_laws_or_is_refused(label, photos):
    """See tests/methods/matrix.py."""
    assert left_out(label, photos) == LEFT_OUT[label]


@pytest.mark.parametrize("label", [label for label in SMALL if label not in EQUAL])
def test_counts_may_differ_where_the_table_says_so(label, photos):
    assert mask_exact(label, photos, masking=FREE)
    assert error_exact(label, photos, masking=FREE)
    model, inputs, samples = build(label, photos, masking=FREE)
    losses = step(model, inputs, samples)
    assert label == "MixMIM" or losses["mask_ratio_min"] < losses["mask_ratio_max"]


@pytest.mark.parametrize("label", EQUAL)
def test_free_counts_are_refused_where_the_table_says_so(label, photos):
    with pytest.raises(ValueError, match=r"needs the same number of visible patches.*'quantile'"):
        build(label, photos, masking=FREE)


@pytest.mark.parametrize("label", SMALL)
def test_the_gate_adds_a_gradient_or_is_refused(label, photos):
    gated = LEARNED | dict(gate=True)
    if label not in ("MAE", "MFF", "EVA", "MILAN"):
        with pytest.raises(ValueError, match="leave out gate=True"):
            build(label, photos, masking=gated)
        return
    gradients = []
    for masking in (LEARNED, gated):
        model, inputs, samples = build(label, photos, masking=masking)
        step(model, inputs, samples)
        gradients.append(model.masking.network.convolutions[0].weight.grad)
    assert not torch.allclose(*gradients, rtol=1e-3, atol=0)


@pytest.mark.parametrize("label", ["MAE", "MFF", "SimMIM", "iTPN (pixel)", "SparK", "MixMIM"])
def test_what_predicts_pixels_can_show_them(label, photos):
    model, inputs, _ = build(label, photos, masking=LEARNED)
    patch_mask, images = model.eval().reconstruct(inputs)
    assert images.shape == inputs.shape
    assert len(patch_mask.mask) == (1 if label == "MixMIM" else len(inputs))
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("label", ["BEiT v1", "CAE", "MILAN", "MaskFeat", "iTPN (clip)"])
def test_what_does_not_predict_pixels_shows_its_mask_alone(label, photos):
    model, inputs, _ = build(label, photos, masking=LEARNED)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patch_mask, images = model.eval().reconstruct(inputs)
    assert images is None
    assert patch_mask.mask.mean() == 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("label", ["MAE", "SimMIM", "MFF", "iTPN (pixel)", "SparK"])
def test_a_combined_loss_in_the_head_equals_one_in_the_strategy(label, photos):
    model, inputs, samples = build(label, photos, masking=LEARNED)
    expected = step(model, inputs, samples)
    model, inputs, samples = build(label, photos, masking=LEARNED)
    stock = model.loss_module
    # As where the config has no masking.loss.
    model.masking.give_default_loss(model.masking.loss)
    combined = CombinedAdversarialLoss(model.masking.loss.criterion, channel=stock.channel)
    if label == "SparK":
        model.head.loss = combined
    else:
        model.head.loss_module = combined
    losses = step(model, inputs, samples)
    for key in ("loss", "reconstruction", "adversarial"):
        assert torch.allclose(losses[key], expected[key], rtol=1e-5), key


@pytest.mark.parametrize("label", ["MixMIM", "EVA"])
def test_a_combined_loss_that_the_head_cannot_use_is_refused(label, photos, monkeypatch):
    file, pixels, changes = SMALL[label]
    head = dict(head=dict(loss=dict(_delete_=True, type="CombinedAdversarialLoss")))
    monkeypatch.setitem(SMALL, label, (file, pixels, changes | head))
    with pytest.raises(ValueError, match=r"masking=dict\(loss=dict\(lambda_adv=...\)\)"):
        build(label, photos, masking=LEARNED)


def test_an_unknown_loss_is_refused(photos, monkeypatch):
    file, pixels, changes = SMALL["EVA"]
    head = dict(head=dict(loss=dict(_delete_=True, type="SeesawLoss", num_classes=3)))
    monkeypatch.setitem(SMALL, "EVA", (file, pixels, changes | head))
    with pytest.raises(ValueError, match=r"knows how to get it.*the head of EVA has SeesawLoss"):
        build("EVA", photos, masking=LEARNED)


@pytest.mark.parametrize("label", SMALL)
def test_the_committed_table_says_what_the_code_says(label, photos):
    with (RESULTS / "methods.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (RESULTS / "methods.md").read_text() == table(rows)
    mine = [row for row in rows if row["method"] == label]
    assert {row["stack"].split()[0] for row in mine} == {"upstream", "forks"}
    facts = support(label, photos)
    for row in mine:
        assert {key: row[key] for key in SUPPORT} == facts
        assert all(row[check] == "yes" for check in CHECKS)
        # Empty: not measured on that stack yet.
        assert row["hidden unseen"] in ("", "NO" if label == "iTPN (clip)" else "yes")
        assert row["random identical"] in ("", "yes" if label in RANDOM else "NO")
        assert row["left out"] in ("", LEFT_OUT[label])
    assert any(row["hidden unseen"] for row in mine)


def test_the_table_is_of_both_stacks():
    cells = dict.fromkeys([*CHECKS, *MEASURED], "yes") | dict.fromkeys(SUPPORT, "x")
    rows = [
        dict(stack=stack, torch="9", method=label, **cells)
        for label in SMALL
        for stack in ("upstream 1", "forks 2")
    ]
    rows[1]["trains"] = "NO"
    lines = narrow(table(rows)).splitlines()
    (mae,) = [line for line in lines if line.startswith("| MAE |")]
    assert mae.startswith("| MAE | yes / NO | yes / yes |")
    assert sum(line.startswith("| ") for line in lines) == 15
