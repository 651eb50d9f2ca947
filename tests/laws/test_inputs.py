"""Inputs as users have them: one sentence says what came and what to do."""

from __future__ import annotations

import warnings

import pytest
import torch

from amn_masking import AdversarialMasking, MaskingNetwork, RandomMasking
from amn_masking.estimators import ESTIMATORS
from amn_masking.strategies import BlockMasking, HardPatchMasking, RandomRatioMasking
from tests.helpers.pictures import SIDE, images_of

STRATEGIES = {
    "random": lambda: RandomMasking(0.5, SIDE),
    "block": lambda: BlockMasking(0.5, SIDE),
    "adversarial": lambda: AdversarialMasking(0.5, SIDE),
    "random ratio": lambda: RandomRatioMasking(RandomMasking(patch_size=SIDE)),
}
each_strategy = pytest.mark.parametrize("name", STRATEGIES)
images = images_of((6, 6))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (images.numpy(), TypeError, "images expected a torch.Tensor, got ndarray; .*as_tensor"),
        (images.tolist(), TypeError, "images expected a torch.Tensor, got list"),
        ((255 * images).byte(), TypeError, r"floating point and normalised, got torch.uint8; such"),
        (images.long(), TypeError, "got torch.int64"),
        (images[0], ValueError, r"\(B, C, H, W\), got \(3, 24, 24\)"),
        (images.permute(0, 2, 3, 1), ValueError, r"looks like channels-last; give images.permute"),
        (
            images[..., :-1],
            ValueError,
            "24 x 23 pixels does not split .* multiple, such as 24 x 20",
        ),
    ],
)
@each_strategy
def test_images_of_another_kind(name, given, error, message):
    with pytest.raises(error, match=message):
        STRATEGIES[name]()(given)


@pytest.mark.parametrize("generator", [0, 123, "cpu"])
@each_strategy
def test_a_generator_that_is_a_number(name, generator):
    with pytest.raises(
        TypeError, match=r"torch.Generator\(device\).manual_seed\(0\), got (int|str)"
    ):
        STRATEGIES[name]()(images, generator)


def test_channels_that_the_network_does_not_take():
    with pytest.raises(
        ValueError, match=r"\(B, 3, H, W\), got \(2, 13, 24, 24\); set network=dict"
    ):
        AdversarialMasking(0.5, SIDE)(torch.randn(2, 13, 24, 24))
    AdversarialMasking(0.5, SIDE, network=dict(in_channels=13))(torch.randn(2, 13, 24, 24))
    AdversarialMasking(0.5, 2, network=dict(in_channels=13))(torch.randn(2, 13, 4, 4))
    with pytest.raises(ValueError, match=r"channels-last .*permute\(0, 3, 1, 2\)"):
        MaskingNetwork()(torch.randn(2, 24, 24, 3))


@pytest.mark.parametrize(
    ("pixels", "warns"),
    [
        (lambda x: x, False),
        (lambda x: x.sigmoid(), False),
        (lambda x: 255 * x.sigmoid(), True),
        (lambda x: 255 * x.sigmoid() - 127, True),
    ],
    ids=["normalised", "in [0, 1]", "in [0, 255]", "centred"],
)
def test_pixels_that_are_not_normalised_are_warned_of_once(pixels, warns):
    masking = AdversarialMasking(0.5, SIDE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            masking(pixels(images))
    assert len(caught) == warns
    if warns:
        assert "the masking network expects them normalised" in str(caught[0].message)


def test_the_first_look_draws_nothing_and_leaves_no_graph():
    masking = AdversarialMasking(0.5, SIDE)
    one = masking(images, torch.Generator().manual_seed(0)).mask
    two = masking(images, torch.Generator().manual_seed(0)).mask
    assert torch.equal(one, two)


# --- settings from which nothing can be learned: one masked patch per image


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_masked_patch_is_refused_in_training_where_it_gives_no_gradient(name):
    """32 pixels, patch 16, ratio 0.25: the gradient is 0, but for rounding, for all but
    score_function.
    """
    pictures = torch.randn(4, 3, 32, 32)
    masking = AdversarialMasking(0.25, 16, estimator=dict(type=name))

    def gradient():
        patch_mask = masking(pictures)
        error = torch.rand(4, 4, requires_grad=True)
        masking.total_loss(error.mean(), error, patch_mask).backward()
        return sum(p.grad.abs().sum() for p in masking.parameters())

    if name == "score_function":
        assert gradient() > 0
        return
    with pytest.raises(
        ValueError, match=r"1 of each image's 4 patches are predicted at most.*'score_function'"
    ):
        masking(pictures)
    # What it would have been.
    masking.estimator.fewest_masked = 0
    found = gradient()
    masking.zero_grad()
    masking.mask_ratio = 0.5
    assert found < 1e-3 * gradient()


@pytest.mark.parametrize(
    "make", [lambda: AdversarialMasking(0.25, 16), lambda: HardPatchMasking(0.25, 16)]
)
def test_one_masked_patch_is_fine_where_nothing_is_learned(make):
    pictures = torch.randn(4, 3, 32, 32)
    masking = make()
    assert (masking.eval()(pictures).mask.sum(1) == 1).all()
    with torch.no_grad():
        assert (masking.train()(pictures).mask.sum(1) == 1).all()
    masking.mask_ratio = 0.5
    masking(pictures)


@pytest.mark.parametrize("kind", ["constant", "mean"])
def test_a_free_count_of_one_is_refused_where_no_batch_can_have_another(kind):
    pictures = torch.randn(4, 3, 32, 32)

    def masking(low, high, **options):
        threshold = dict(type=kind, ratio_range=(low, high))
        return AdversarialMasking(patch_size=16, threshold=threshold, **options)

    with pytest.raises(ValueError, match=r"1 of each image's 4 patches are.*ratio_range"):
        masking(0.0, 0.3)(pictures)
    masking(0.0, 0.3, estimator=dict(type="score_function"))(pictures)
    masking(0.0, 0.3).eval()(pictures)
    masking(0.0, 0.5)(pictures)


def test_masks_that_are_all_drawn_at_random_are_refused_in_training():
    pictures = torch.randn(4, 3, 32, 32)
    for masking in (
        AdversarialMasking(0.5, 16, random_share=1.0),
        AdversarialMasking(0.5, 16, random_share=1.0, strength=dict(start=0, end=1)),
    ):
        with pytest.raises(ValueError, match="random_share=1 draws every masked patch at random"):
            masking(pictures)
        masking.eval()(pictures)
    AdversarialMasking(0.5, 16, random_share=1.0, strength=0)(pictures)
    AdversarialMasking(0.5, 16, random_share=dict(start=1.0, end=0.5))(pictures)


def test_strategies_that_learn_nothing_take_one_masked_patch():
    for make in (RandomMasking, BlockMasking):
        assert (make(0.25, 16)(torch.randn(4, 3, 32, 32)).mask.sum(1) == 1).all()
