"""A decoder of another codebase without the patches that are left out; more in tests/contract."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from amn_masking import RandomMasking
from amn_masking.adapters.decoded import decoded_only

IMAGES = torch.zeros(2, 3, 16, 16)
SOME, ALL = (RandomMasking(0.75, 4, prediction_ratio=ratio)(IMAGES) for ratio in (0.25, None))
TOKENS = torch.randn(2, 18, 8)  # two of the prefix, 16 patches


class Block(nn.Module):
    """Notes how many tokens it gets and counts them in what it gives."""

    def forward(self, hidden_states, scale=1.0):
        self.seen = hidden_states.shape[1]
        return hidden_states * scale


def decoder():
    return Block(), nn.Identity()


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("taken_off", [False, True], ids=["prefix predicted", "prefix taken off"])
@pytest.mark.parametrize("late", [False, True])
def test_the_block_gets_the_decoded_tokens_and_the_prediction_has_all(
    by_name, prefix, taken_off, late
):
    block, prediction = decoder()
    tokens = TOKENS[:, 2 - prefix :]
    with decoded_only(block, prediction, (lambda: SOME) if late else SOME):
        out = block(hidden_states=tokens, scale=2.0) if by_name else block(tokens, 2.0)
        out = prediction(out[:, prefix:] if taken_off else out)
    assert block.seen == prefix + 8
    kept = (1 - SOME.mask + SOME.predicted)[:, :, None]
    expected = torch.cat([2 * tokens[:, :prefix], 2 * tokens[:, prefix:] * kept], 1)
    assert torch.equal(out, expected[:, prefix:] if taken_off else expected)


def test_nothing_is_changed_where_nothing_is_left_out_and_nothing_stays_behind():
    block, prediction = decoder()
    with decoded_only(block, prediction, ALL):
        assert block(TOKENS) is not None
        assert block.seen == 18
        assert prediction(TOKENS) is TOKENS

    def fails():
        with decoded_only(block, prediction, SOME):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fails()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in (block, prediction))


@pytest.mark.parametrize("seen_first", [False, True])
def test_tokens_of_another_number_are_refused(seen_first):
    block, prediction = decoder()
    too_few = r"block expected all 16 .* got \(2, 15, 8\); leave prediction_ratio"
    with pytest.raises(ValueError, match=too_few), decoded_only(block, prediction, SOME):
        block(TOKENS[:, 3:])
    too_many = r"expected 8 patches, .* got \(2, 18, 8\); leave prediction_ratio"

    def run():
        with decoded_only(block, prediction, SOME):
            if seen_first:
                block(TOKENS)
            prediction(TOKENS)

    with pytest.raises(ValueError, match=too_many):
        run()


def test_a_decoder_that_goes_around_either_is_refused():
    block, prediction = decoder()
    with pytest.raises(ValueError, match="it did not call"), decoded_only(block, prediction, SOME):
        block(TOKENS)
    with pytest.raises(ValueError, match="it did not call"), decoded_only(block, prediction, SOME):
        prediction(TOKENS[:, :8])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("which", [0, 1], ids=["block", "prediction"])
def test_activation_checkpointing_inside_is_refused(which, use_reentrant):
    block, prediction = decoder()
    tokens = TOKENS.clone().requires_grad_()

    def run():
        with decoded_only(block, prediction, SOME):
            given = block(tokens) if which else tokens
            checkpoint((block, prediction)[which], given, use_reentrant=use_reentrant)

    with pytest.raises(ValueError, match=r"activation checkpointing is on.*leave prediction_"):
        run()


def test_activation_checkpointing_around_all_of_it_is_right():
    block, prediction = decoder()
    tokens = TOKENS.clone().requires_grad_()

    def run(tokens):
        with decoded_only(block, prediction, SOME):
            return prediction(block(tokens).square())

    expected = torch.autograd.grad(run(tokens).sum(), tokens)
    got = torch.autograd.grad(checkpoint(run, tokens, use_reentrant=False).sum(), tokens)
    assert torch.equal(*expected, *got)
