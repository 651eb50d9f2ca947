"""The laws of the contract can fail: each is run on an adapter that is broken for it."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from tests.helpers.tables import narrow

pytest.importorskip("timm", reason="needs the extra 'timm'")

from amn_masking import PatchMask
from amn_masking.adapters import padding, reference_mae
from amn_masking.strategies import MaskingStrategy, adversarial
from tests.contract.contract import absent, check, load, table
from tests.contract.laws import LAWS
from tests.contract.targets.reference_target import TARGETS, LearnedAutoencoder

Mixin = reference_mae.MaskedAutoencoderMixin
STOCK = {
    name: getattr(Mixin, name) for name in ("random_masking", "forward", "make_mask", "patch_error")
}


def masked_by(change):
    """random_masking with something else done to (tokens, patch_mask)."""

    def random_masking(self, x, mask_ratio):
        return change(self, *STOCK["random_masking"](self, x, mask_ratio))

    return (Mixin, "random_masking", random_masking)


def other_mask(changed):
    """make_mask with something else done to the images and the mask."""
    return (Mixin, "make_mask", lambda self, x: changed(x, STOCK["make_mask"](self, x)))


def rolled(m):
    return PatchMask.from_shuffle(m.ids_shuffle.roll(1, 1), m.num_visible, m.grid)


def sees_the_left_out(self, x, mask_ratio):
    kept, mask, ids = STOCK["random_masking"](self, x, mask_ratio)
    left_out = mask_ratio.mask - mask_ratio.predicted
    return kept + (x * left_out[:, :, None]).sum(1, keepdim=True), mask, ids


def decodes_others(self, tokens):
    return tokens[:, self.num_left_out :]


def predicts_elsewhere(self, decoded):
    return nn.functional.pad(decoded, (0, 0, 0, self.num_left_out))


def places_not_gathered(self, x, mask, ids):
    """As rotary positions of the first N patches, whichever those are."""
    return x * (1 + torch.arange(x.shape[1])[:, None]), mask, ids


def leaves_something(self, imgs, *args, **kwargs):
    self.left_behind = True
    return STOCK["forward"](self, imgs, *args, **kwargs)


def keeps_the_graph(self, imgs, *args, **kwargs):
    outputs = STOCK["forward"](self, imgs, *args, **kwargs)
    self.error_checked = outputs[0]
    return outputs


def not_a_value_error(self, imgs, *args, **kwargs):
    try:
        return STOCK["forward"](self, imgs, *args, **kwargs)
    except ValueError as error:
        raise RuntimeError(str(error)) from error


def looks_at_no_strategy(self, imgs, *args, **kwargs):
    unlooked = dict(check_strategy=lambda *args: None, make_mask=lambda self, x: rolled_in(x))
    with patch.multiple(Mixin, **unlooked):
        return STOCK["forward"](self, imgs, *args, **kwargs)


def unmasked_in_eval(self, x, mask, ids):
    return (x if self.training else x * 2), mask, ids


def hides_nothing(tokens, padding):
    return torch.zeros(tokens.shape[0], 1, 1, tokens.shape[1])


def hides_the_class_token(tokens, padding):
    hidden = torch.nn.functional.pad(padding, (1, 0), value=True)[:, None, None, :]
    return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))


BROKEN = {
    "other tokens": ("exactly ids_keep", masked_by(lambda self, x, m, i: (x.roll(1, 1), m, i))),
    "tokens scaled": ("exactly ids_keep", masked_by(lambda self, x, m, i: (x * 1.001, m, i))),
    "class token moved": (
        "prefix",
        (LearnedAutoencoder, "with_class_token", lambda self, x: torch.cat([x[:, :1], x], 1)),
    ),
    "mask inverted": ("random = stock", masked_by(lambda self, x, m, i: (x, 1 - m, i))),
    "adds the error": (
        "random adds 0",
        (MaskingStrategy, "total_loss", lambda self, loss, error, m: loss + 1e-3 * error.mean()),
    ),
    "loss without graph": (
        "random adds 0",
        (MaskingStrategy, "total_loss", lambda self, loss, error, m: loss.detach()),
    ),
    "error of other patches": (
        "error exact",
        (Mixin, "patch_error", lambda *args: STOCK["patch_error"](*args).roll(1, 1)),
    ),
    "gradient down": (
        "gradient up",
        (adversarial, "reverse_gradient", lambda z, s: z.detach() + s * (z - z.detach())),
    ),
    "no gradient": ("gradient up", other_mask(lambda x, m: m.detach())),
    "places not gathered": ("order free", masked_by(places_not_gathered)),
    "depends on the place in the batch": (
        "batch order",
        masked_by(lambda self, x, m, i: (x + torch.arange(len(x))[:, None, None], m, i)),
    ),
    "batch mean removed": (
        "images alone",
        masked_by(lambda self, x, m, i: (x - x.mean(0), m, i)),
    ),
    "error of the images before": (
        "images alone",
        (Mixin, "patch_error", lambda *args: STOCK["patch_error"](*args).cumsum(0)),
    ),
    "bfloat16 masks moved": (
        "bfloat16",
        other_mask(lambda x, m: rolled(m) if x.dtype == torch.bfloat16 else m),
    ),
    "autocast masks without gradient": (
        "autocast",
        other_mask(lambda x, m: m.detach() if torch.is_autocast_enabled("cpu") else m),
    ),
    "something left behind": ("untouched", (Mixin, "forward", leaves_something)),
    "another error": ("wrong use", (Mixin, "forward", not_a_value_error)),
    "patch size not looked at": ("wrong use", (Mixin, "forward", looks_at_no_strategy)),
    "padding seen": ("free counts", (padding, "attention_mask", hides_nothing)),
    "padding decoded": (
        "free counts",
        (padding, "mask_tokens_in_padding", lambda tokens, mask_token, padding: tokens),
    ),
    "class token hidden": ("free counts", (padding, "attention_mask", hides_the_class_token)),
    "gate left open": (
        "gate",
        other_mask(lambda x, m: replace(m, learned=replace(m.learned, gate=False))),
    ),
    "gate not reversed": (
        "gate",
        (adversarial, "reverse_gradient", lambda z, s: z.detach() - abs(s) * (z - z.detach())),
    ),
    "graph kept": ("copies, eval", (Mixin, "forward", keeps_the_graph)),
    "other tokens in eval": ("copies, eval", masked_by(unmasked_in_eval)),
    "another mask where all is predicted": (
        "predict all",
        other_mask(lambda x, m: m if m.num_predicted is None else rolled(m)),
    ),
    "left out decoded": (
        "left out",
        (reference_mae, "decoded_only", lambda *args: nullcontext()),
    ),
    "the left out in the loss": (
        "left out",
        masked_by(lambda self, x, m, i: (x, (i >= x.shape[1]).float(), i)),
    ),
    "left out seen": ("left out", (Mixin, "random_masking", sees_the_left_out)),
    "other tokens decoded": ("left out", (PatchMask, "gather_decoded", decodes_others)),
    "predictions in other places": (
        "order free",
        (PatchMask, "scatter_decoded", predicts_elsewhere),
    ),
    "the left out in the mean": (
        "error exact",
        masked_by(lambda self, x, m, i: (x, (i >= x.shape[1]).float(), i)),
    ),
    "no gradient where some is left out": (
        "gradient up",
        other_mask(lambda x, m: m.detach() if m.num_left_out else m),
    ),
}  # fmt: skip


def rolled_in(images):
    """A mask of the right length whatever the strategy's patches are."""
    noise = torch.rand(len(images), 16)
    return PatchMask.from_shuffle(noise.argsort(1), 8, (4, 4))


def holds(law, target):
    try:
        return LAWS[law](target)
    except Exception:
        return False


def test_every_law_is_seen_to_fail():
    assert {law for law, _ in BROKEN.values()} == set(LAWS)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_adapter_is_noticed(what, monkeypatch):
    law, change = BROKEN[what]
    assert holds(law, TARGETS[0])
    monkeypatch.setattr(*change)
    monkeypatch.setattr(Mixin, "check_error", lambda *args: None)
    assert not holds(law, TARGETS[0])


@pytest.mark.parametrize(
    ("law", "support"),
    [
        ("free counts", "free_counts"),
        ("gate", "gate"),
        ("left out", "leaves_out"),
        ("bfloat16", "bfloat16"),
        ("autocast", "autocast"),
    ],
)
def test_what_a_target_says_it_cannot_do_must_be_refused(law, support):
    target = copy.copy(TARGETS[0])
    setattr(target, support, False)
    assert LAWS[law](target) is False


def test_the_table_has_a_row_per_adapter_and_a_line_per_law(monkeypatch):
    monkeypatch.setitem(LAWS, "prefix", lambda target: 1 / 0)
    monkeypatch.setitem(LAWS, "gate", lambda target: None)
    row = check(TARGETS[0])
    assert row["prefix"] == "NO"
    assert row["gate"] == "-"
    assert row["free counts"] == "yes"
    text = narrow(table([row, absent("other", "nowhere")]))
    assert "| reference MAE | yes | NO |" in text
    assert "| other | not installed |" in text
    assert text.count("- **") == len(LAWS)


def test_a_missing_package_gives_a_row_and_a_mistake_an_error(monkeypatch):
    module = "tests.contract.targets.reference_target"
    assert load(module) == (list(TARGETS), "")
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    for name in (module, "tests.helpers.reference_model"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert load(module) == ([], "timm")
    with pytest.raises(ModuleNotFoundError, match="tests"):
        load("tests.contract.targets.no_such_target")
