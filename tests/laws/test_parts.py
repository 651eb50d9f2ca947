"""Parts are objects: any network, threshold, estimator, loss, schedule, strategy of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amn_masking import (
    AdversarialMasking,
    CombinedAdversarialLoss,
    MaskingNetwork,
    MaskingStrategy,
    PatchMask,
    RandomMasking,
)
from amn_masking.estimators import Estimator, Gumbel, Ranking, StraightThrough
from amn_masking.estimators.base import straight_through
from amn_masking.schedules import Schedule
from amn_masking.strategies import HardPatchMasking, RandomRatioMasking, ShuffledMasking
from amn_masking.strategies.ranked import RankedMasking
from amn_masking.thresholds import Mean, Quantile, Threshold
from tests.helpers.draws import generator
from tests.helpers.pictures import SIDE, brightness, images_of


class Brightness(nn.Module):
    """A network without parameters."""

    def forward(self, images):
        return torch.sigmoid(images.mean(1, keepdim=True))


class HalfOfThem(Threshold):
    def forward(self, candidates):
        return candidates.select(candidates.length // 2)


class Identity(Estimator):
    differentiable = True

    def surrogate(self, logits, priorities, selection):
        return straight_through(selection.patch_mask.mask, logits)


class Checkerboard(MaskingStrategy):
    """Knows of no ``valid``, and its ratio is its own affair."""

    def forward(self, images, generator=None):
        (h, w), batch = self.grid(images), len(images)
        board = (torch.arange(h)[:, None] + torch.arange(w)) % 2
        own = (board + torch.arange(batch)[:, None, None]) % 2
        return PatchMask.from_mask(own)


class FirstFew(MaskingStrategy):
    """Follows ``mask_ratio``, without any machinery of ours."""

    takes_ratio = True

    def forward(self, images, generator=None):
        length = len(brightness(images)[0])
        mask = (torch.arange(length) < round(self.mask_ratio * length)).expand(len(images), -1)
        return PatchMask.from_mask(mask, self.grid(images))


def trains(masking, images=None):
    """Whether the network got a gradient from the loss of one mask."""
    images = images_of((6, 6), 4) if images is None else images
    patch_mask = masking(images)
    error = brightness(images).exp().requires_grad_()
    masking.total_loss(error.mean(), error, patch_mask).backward()
    return any(p.grad is not None and p.grad.any() for p in masking.parameters())


def test_objects_and_dicts_make_the_same_strategy():
    torch.manual_seed(1)
    network = MaskingNetwork(channels=4)
    by_object = AdversarialMasking(
        patch_size=SIDE,
        network=network,
        threshold=Mean(0.9),
        estimator=Gumbel(0.5),
        loss=CombinedAdversarialLoss(lambda_adv=0.3),
        strength=Schedule(-1.0, 1.0),
    )
    torch.manual_seed(1)
    by_dict = AdversarialMasking(
        patch_size=SIDE,
        network=dict(channels=4, downsample=1),
        threshold=dict(type="mean", scale=0.9),
        estimator=dict(type="gumbel", temperature=0.5),
        loss=dict(lambda_adv=0.3),
        strength=dict(type="linear", start=-1.0, end=1.0),
    )
    assert by_object.network is network
    images, error = images_of((6, 6)), torch.rand(2, 36)
    for masking in (by_object, by_dict):
        masking.set_progress(0.75)
    one, two = (masking(images, generator(0)) for masking in (by_object, by_dict))
    assert torch.equal(one.mask, two.mask)
    totals = [
        masking.total_loss(torch.ones(()), error, mask)
        for masking, mask in ((by_object, one), (by_dict, two))
    ]
    assert torch.equal(*totals)
    for total in totals:
        total.backward()
    for x, y in zip(by_object.parameters(), by_dict.parameters(), strict=True):
        assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 1, SIDE, SIDE), nn.Sigmoid()),
        nn.Sequential(nn.Conv2d(3, 1, 1), nn.Sigmoid()),
        MaskingNetwork(channels=2, downsample=2),
    ],
    ids=["a convolution a patch", "of pixels", "ours"],
)
def test_any_module_from_images_to_a_score_map_is_a_network(network):
    assert trains(AdversarialMasking(0.5, SIDE, network=network))


def test_a_network_without_parameters_scores_and_is_not_trained():
    masking = AdversarialMasking(0.5, SIDE, network=Brightness()).eval()
    images = images_of((6, 6))
    mask = masking(images).mask.bool()
    scores = Brightness()(images)
    scores = nn.functional.avg_pool2d(scores, SIDE).flatten(1)
    for row, masked in zip(scores, mask, strict=True):
        assert row[masked].min() > row[~masked].max()
    assert not trains(masking.train())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_images_are_given_to_a_network_in_its_own_precision(dtype):
    network = nn.Sequential(nn.Conv2d(3, 1, SIDE, SIDE), nn.Sigmoid()).to(dtype)
    patch_mask = AdversarialMasking(0.5, SIDE, network=network)(images_of((6, 6)))
    assert patch_mask.learned.logits.dtype == torch.float32


class Gives(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(images)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: x.mean((1, 2, 3)).sigmoid(), ValueError, r"\(B, 1, H', W'\), got \(2,\)"),
        (lambda x: torch.sigmoid(x), ValueError, r"\(B, 1, H', W'\), got \(2, 3, 24, 24\)"),
        (
            lambda x: torch.sigmoid(x[:, :1, :10, :10]),
            ValueError,
            "score map .*of 10 x 10 does not split into 6 x 6",
        ),
        (lambda x: 3 * x[:, :1], ValueError, r"scores in \(0, 1\), got -.*end it with a sigmoid"),
        (lambda x: [torch.sigmoid(x)], TypeError, "score map, a tensor of shape .*got list"),
        (lambda x: None, TypeError, "got NoneType"),
    ],
)
def test_a_network_of_another_kind_is_told_what_is_expected(make, error, message):
    with pytest.raises(error, match=message):
        AdversarialMasking(0.5, SIDE, network=Gives(make))(images_of((6, 6)))


def test_a_threshold_of_one_s_own():
    for given in (HalfOfThem(), dict(type=HalfOfThem)):
        masking = AdversarialMasking(patch_size=SIDE, threshold=given)
        assert (masking(images_of((6, 6))).mask.sum(1) == 18).all()
        assert trains(masking)


def test_an_estimator_of_one_s_own():
    for given in (Identity(noise=0.5), dict(type=Identity, noise=0.5)):
        masking = AdversarialMasking(0.5, SIDE, estimator=given)
        assert masking.estimator.noise == 0.5
        assert trains(masking)
    # And the gate, since it says that it is differentiable.
    AdversarialMasking(0.5, SIDE, estimator=Identity(), gate=True)


def test_a_strategy_of_one_s_own_that_ranks():
    class BrightestFirst(RankedMasking):
        def priorities(self, images, num_masked, generator):
            return brightness(images)

    images = images_of((6, 6))
    mask = BrightestFirst(0.25, SIDE)(images).mask.bool()
    for row, masked in zip(brightness(images), mask, strict=True):
        assert row[masked].min() > row[~masked].max()


@pytest.mark.parametrize("make", [Checkerboard, FirstFew])
def test_the_wrappers_take_a_strategy_that_has_only_a_forward(make):
    images = images_of((6, 6), 4)
    shuffled = ShuffledMasking(make(SIDE))
    assert shuffled(images).mask.shape == (4, 36)
    assert shuffled.total_loss(torch.ones(()), torch.rand(4, 36), shuffled(images)) == 1


def test_a_random_ratio_reaches_a_strategy_of_one_s_own():
    strategy = RandomRatioMasking(FirstFew(SIDE), (0.25, 0.75))
    images = images_of((6, 6), 2)
    ratios = {round(strategy(images).mask.mean().item(), 3) for _ in range(30)}
    assert len(ratios) > 5
    assert min(ratios) >= 0.24
    assert max(ratios) <= 0.76


def test_wrappers_of_wrappers():
    inner = AdversarialMasking(patch_size=SIDE, gate=True, strength=dict(start=-1.0, end=1.0))
    strategy = RandomRatioMasking(ShuffledMasking(inner), (0.25, 0.5))
    strategy.set_progress(1.0)
    assert inner.strength == strategy.strength == 1
    assert strategy.gate
    assert strategy.log_values() == inner.log_values()
    assert trains(strategy)


@pytest.mark.parametrize("make", [RandomRatioMasking, ShuffledMasking])
def test_a_wrapper_forwards_what_it_does_not_change(make):
    inner = AdversarialMasking(patch_size=SIDE, gate=True, loss=dict(lambda_adv=0.3))
    wrapper = make(inner)
    assert wrapper.loss is inner.loss
    assert wrapper.own_loss
    assert wrapper.gate
    assert wrapper.patch_size == (SIDE, SIDE)
    assert wrapper.log_values() == dict(strength=1.0)
    with pytest.raises(ValueError, match=r"the host lets no gradient through; leave out gate=True"):
        wrapper.require("the host", no_gate="lets no gradient through")
    with pytest.raises(ValueError, match=r"patch_size=\(4, 4\), but the host works on patches of"):
        wrapper.require("the host", patch_size=(8, 8))
    wrapper.require("the host", patch_size=(4, 4), equal_counts="needs equal counts")
    free = ShuffledMasking(AdversarialMasking(patch_size=SIDE, threshold=Mean()))
    with pytest.raises(ValueError, match=r"the host needs equal counts.*type='quantile'"):
        free.require("the host", equal_counts="needs equal counts")


def test_what_every_strategy_answers():
    for strategy in (RandomMasking(0.5, SIDE), Checkerboard(SIDE), HardPatchMasking(0.5, SIDE)):
        assert isinstance(strategy.log_values(), dict)
        assert strategy.gate is False
        assert strategy.free_counts is False
        strategy.require("the host", (SIDE, SIDE), "needs equal counts", "lets none through")


def test_total_loss_asks_for_the_patch_mask_itself():
    masking = AdversarialMasking(0.5, SIDE)
    patch_mask, error = masking(images_of((6, 6))), torch.rand(2, 36)
    with pytest.raises(TypeError, match=r"the PatchMask that the strategy made.*got Tensor"):
        masking.total_loss(torch.ones(()), error, patch_mask.mask)


def test_a_strategy_s_own_weights_and_another_loss_are_refused_together():
    """Else its lambda_adv would be ignored without a word."""
    images, error = images_of((6, 6)), torch.rand(2, 36)
    target = torch.rand(2, 36, 5)
    own = AdversarialMasking(0.5, SIDE, loss=dict(lambda_adv=2.0))
    with pytest.raises(ValueError, match=r"was given loss=.*another CombinedAdversarialLoss"):
        CombinedAdversarialLoss()(target + 1, target, own(images))
    own.loss(target + 1, target, own(images))
    own.total_loss(torch.ones(()), error, own(images))
    CombinedAdversarialLoss()(target + 1, target, AdversarialMasking(0.5, SIDE)(images))


def test_parts_that_exclude_each_other_are_refused_as_objects_too():
    with pytest.raises(ValueError, match="has none there"):
        AdversarialMasking(0.5, SIDE, estimator=Ranking(), gate=True)
    with pytest.raises(ValueError, match=r"Mean chooses .* takes no mask_ratio"):
        AdversarialMasking(0.5, SIDE, threshold=Mean())
    with pytest.raises(TypeError, match=r"did you mean Quantile\(\)"):
        AdversarialMasking(0.5, SIDE, threshold=Quantile)
    with pytest.raises(TypeError, match=r"estimator expected a Estimator"):
        AdversarialMasking(0.5, SIDE, estimator=Quantile())
    with pytest.raises(TypeError, match="network expected a Module"):
        AdversarialMasking(0.5, SIDE, network=StraightThrough())
