"""Rows of different lengths; through whole models: test_reference_mae.py."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("timm", reason="needs the extra 'timm'")

from timm.models.vision_transformer import Block

from amn_masking.adapters.padding import (
    attention_mask,
    checkpoints_below,
    hidden_padding,
    mask_tokens_in_padding,
)
from tests.helpers.reference_model import SmallMaskedAutoencoder

PADDING = torch.tensor([[False, False, True, True], [False] * 4, [False, True, True, True]])


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("fused", [True, False])
def test_what_is_hidden_changes_nothing_and_the_prefix_is_seen_by_all(prefix, fused):
    block = Block(16, 2).eval()
    block.attn.fused_attn = fused
    tokens = torch.randn(3, prefix + 4, 16)
    rows = torch.cat([torch.zeros(3, prefix, dtype=torch.bool), PADDING], 1)
    with torch.no_grad():
        found = block(tokens, attn_mask=attention_mask(tokens, PADDING))
        for row, hidden, out in zip(tokens, rows, found, strict=True):
            torch.testing.assert_close(out[~hidden], block(row[~hidden][None])[0])


def test_tokens_that_padding_does_not_fit_are_refused():
    for shape in ((3, 3, 16), (3, 4)):
        with pytest.raises(ValueError, match=r"expected tokens of shape \(B, P \+ 4, D\)"):
            attention_mask(torch.zeros(shape), PADDING)


def test_the_decoder_finds_mask_tokens_in_the_place_of_padding():
    tokens, token = torch.randn(3, 5, 8), torch.randn(1, 1, 8)
    found = mask_tokens_in_padding(tokens, token, PADDING)
    assert torch.equal(found[:, :1], tokens[:, :1])
    assert torch.equal(found[:, 1:][~PADDING], tokens[:, 1:][~PADDING])
    assert (found[:, 1:][PADDING] == token[0]).all()


def test_a_model_is_as_before_afterwards_also_where_it_failed():
    model = SmallMaskedAutoencoder()
    modules = [*model.blocks, model.decoder_embed]

    def fails():
        with hidden_padding(model, PADDING):
            assert all(m._forward_pre_hooks or m._forward_hooks for m in modules)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fails()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in modules)
    with hidden_padding(model, None):
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in modules)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_are_counted(use_reentrant):
    found = []

    def inner(x):
        found.append(checkpoints_below())
        return x * 2

    def outer(x):
        return checkpoint(inner, x, use_reentrant=use_reentrant)

    outer(torch.ones(1, requires_grad=True))
    checkpoint(outer, torch.ones(1, requires_grad=True), use_reentrant=use_reentrant)
    inner(torch.ones(1))
    assert found[2] == 0 < found[0] < found[1]
