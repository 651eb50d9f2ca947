"""Strategies around others: random ratios and shuffled masks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import (
    AdversarialMasking,
    CombinedAdversarialLoss,
    PatchMask,
    RandomMasking,
)
from amn_masking.strategies import (
    BlockMasking,
    RandomRatioMasking,
    ShuffledMasking,
)
from tests.helpers import draws
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of


@given(seed=draws.seeds, low=st.floats(0.2, 0.8), width=st.floats(0.0, 0.15))
def test_the_drawn_ratio_lies_in_its_range(seed, low, width):
    inner = RandomMasking(patch_size=SIDE)
    strategy = RandomRatioMasking(inner, (low, low + width))
    patch_mask = strategy(images_of((10, 10), 2), generator(seed))
    least, most = (draws.visible_reference(100, ratio) for ratio in (low + width, low))
    assert least <= patch_mask.num_visible <= most
    assert low <= inner.mask_ratio == strategy.mask_ratio <= low + width
    again = strategy(images_of((10, 10), 2), generator(seed))
    assert torch.equal(again.mask, patch_mask.mask)


def test_the_drawn_ratios_are_uniform():
    strategy, images = (
        RandomRatioMasking(BlockMasking(patch_size=SIDE), (0.3, 0.7)),
        images_of((20, 20), 1),
    )
    ratios = torch.tensor([strategy(images).mask.mean().item() for _ in range(1500)])
    expected = torch.linspace(0.3, 0.7, 1500)
    distance = (ratios.sort().values - expected).abs().max().item() / 0.4
    assert distance < 1.95 / math.sqrt(1500)  # Kolmogorov, 0.1 %


def test_a_learned_mask_takes_the_drawn_ratio():
    strategy = RandomRatioMasking(AdversarialMasking(patch_size=SIDE), (0.2, 0.9))
    images = images_of((8, 8), 3)
    counts = {strategy(images).num_visible for _ in range(20)}
    assert len(counts) > 5
    patch_mask = strategy(images)
    strategy.total_loss(torch.zeros(()), brightness(images).exp(), patch_mask).backward()
    assert strategy.masking.network.convolutions[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["random", "learned", "free counts"])
def test_shuffled_masks_are_those_of_other_images(kind):
    inner = {
        "random": RandomMasking(0.5, SIDE),
        "learned": AdversarialMasking(0.5, SIDE),
        "free counts": AdversarialMasking(
            patch_size=SIDE, threshold=dict(type="mean"), standardise=False
        ),
    }[kind]
    images = images_of((6, 6), 7)
    images[:, :, :8] *= torch.linspace(0.1, 4, 7).view(-1, 1, 1, 1)
    own = inner(images, generator(3))
    seen = set()
    for seed in range(30):
        state = generator(3)
        inner_mask = ShuffledMasking(inner)
        patch_mask = inner_mask(images, state) if seed == 0 else None
        if patch_mask is None:
            state.manual_seed(3)
            patch_mask = ShuffledMasking(Replay(own))(images, generator(seed))
        source = [
            next(i for i in range(7) if torch.equal(own.mask[i], row)) for row in patch_mask.mask
        ]
        assert sorted(source) == list(range(7))
        assert all(i != image for image, i in enumerate(source))
        seen.add(tuple(source))
        # Every row goes along: the count, the order, the logits with their gradient.
        assert torch.equal(patch_mask.ids_shuffle, own.ids_shuffle[source])
        if kind != "random":
            assert torch.equal(patch_mask.learned.logits, own.learned.logits[source])
        if kind == "free counts":
            assert torch.equal(patch_mask.visible_counts, own.visible_counts[source])
    assert len(seen) > 20


class Replay(RandomMasking):
    """Gives one mask again."""

    def __init__(self, patch_mask):
        super().__init__(0.5, SIDE)
        self.patch_mask = patch_mask

    def forward(self, images, generator=None):
        return self.patch_mask


def test_the_gradient_of_a_shuffled_mask_reaches_the_scores_of_its_source():
    estimator = dict(type="straight_through", noise=0.0)
    inner = AdversarialMasking(0.5, SIDE, estimator=estimator)
    images = images_of((6, 6), 5)
    patch_mask = ShuffledMasking(inner)(images, generator(0))
    own = inner(images, generator(0))
    source = [next(i for i in range(5) if torch.equal(own.mask[i], r)) for r in patch_mask.mask]
    error = torch.rand(5, 36)
    grads = []
    for mask, rows in ((patch_mask, error), (own, torch.empty_like(error))):
        if mask is own:
            rows[source] = error  # the error that each source's own mask met
        inner.zero_grad()
        inner.total_loss(torch.zeros(()), rows, mask).backward()
        grads.append([p.grad.clone() for p in inner.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_schedules_reach_the_strategy_within():
    inner = AdversarialMasking(patch_size=SIDE, strength=dict(start=-1.0, end=1.0))
    RandomRatioMasking(inner).set_progress(0.75)
    assert inner.strength == 0.5


def test_patch_masks_are_not_changed_by_what_wraps_them():
    own = RandomMasking(0.5, SIDE)(images_of((4, 4), 3))
    before = own.mask.clone()
    assert isinstance(ShuffledMasking(Replay(own))(images_of((4, 4), 3)), PatchMask)
    assert torch.equal(own.mask, before)


def test_a_batch_of_one_image_keeps_its_mask_with_one_warning():
    """The last batch of an epoch does not stop a run."""
    inner, image = AdversarialMasking(0.5, SIDE), images_of((6, 6), 1)
    strategy = ShuffledMasking(inner)
    with pytest.warns(
        UserWarning, match=r"batch of one image, which keeps its own.*drop_last=True"
    ):
        patch_mask = strategy(image, generator(0))
    assert torch.equal(patch_mask.mask, inner(image, generator(0)).mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy(image)
        strategy(images_of((6, 6), 2))
    error = brightness(image).exp()
    strategy.total_loss(torch.zeros(()), error, patch_mask).backward()
    assert inner.network.convolutions[0].weight.grad.any()


class Own(AdversarialMasking):
    """A strategy of one's own, with a loss and requirements of its own."""

    def total_loss(self, reconstruction, error, patch_mask):
        return reconstruction + 7

    def require(self, host, *args, **options):
        raise ValueError(f"{host} does not suit Own")


@pytest.mark.parametrize("wrap", [ShuffledMasking, RandomRatioMasking])
def test_a_wrapper_is_never_a_snapshot(wrap):
    inner = AdversarialMasking(patch_size=SIDE, strength=dict(start=-1, end=1))
    wrapper = wrap(inner)
    assert wrapper.schedules is inner.schedules
    inner.loss = CombinedAdversarialLoss(lambda_adv=9.0)
    assert wrapper.loss.lambda_adv == 9
    wrapper.loss = CombinedAdversarialLoss(lambda_adv=3.0)
    assert inner.loss.lambda_adv == wrapper.loss.lambda_adv == 3
    assert [name for name, _ in wrapper.named_children()] == ["masking"]
    wrapper.set_progress(0.75)
    assert wrapper.progress == inner.progress
    own = wrap(Own(patch_size=SIDE))
    assert own.total_loss(1, None, None) == 8
    with pytest.raises(ValueError, match="the host does not suit Own"):
        own.require("the host", patch_size=(3, 3))


@pytest.mark.parametrize("wrap", [ShuffledMasking, RandomRatioMasking])
def test_a_wrapper_of_nothing_is_refused_in_a_sentence(wrap):
    with pytest.raises(TypeError, match=r"expected masking= a MaskingStrategy.*got NoneType"):
        wrap()
