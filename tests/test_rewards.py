"""What the masking network is paid for: rewards beside slow references, and the entropy term."""

import pytest
import torch

from amn_masking.mask import PatchMask
from amn_masking.network import logit_entropy
from amn_masking.patches import patchify
from amn_masking.rewards import patch_variance, reward_scale
from amn_masking.strategies import AdversarialMasking, ShuffledMasking


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def masking(**options: object) -> AdversarialMasking:
    torch.manual_seed(0)
    return AdversarialMasking(0.5, patch_size=8, network=dict(channels=4), **options)


def gradient(strategy: AdversarialMasking, patch_mask: PatchMask, error: torch.Tensor):
    objective = patch_mask.learned.objective(error)
    assert objective == 0
    return torch.autograd.grad(objective, list(strategy.network.parameters()))


def test_patch_variance_is_each_patch_s_own():
    pictures = images()
    found = patch_variance(pictures, (2, 3))
    for row, picture in zip(found, pictures, strict=True):
        for index, variance in enumerate(row):
            top, left = 8 * (index // 3), 8 * (index % 3)
            patch = picture[:, top : top + 8, left : left + 8].flatten(1)
            expected = ((patch - patch.mean(1, keepdim=True)) ** 2).mean()
            torch.testing.assert_close(variance, expected)


@pytest.mark.parametrize("size", [(24,), (8, 16, 24)])
def test_patch_variance_of_signals_and_volumes_is_that_of_their_patches(size):
    pictures, sides = torch.randn(4, 3, *size), (4,) * len(size)
    pixels = patchify(pictures, sides).unflatten(2, (-1, 3))
    expected = pixels.var(2, correction=0).mean(2)
    found = patch_variance(pictures, tuple(side // 4 for side in size))
    torch.testing.assert_close(found, expected)


def test_patch_variance_is_exact_far_from_0():
    # Of pictures that are not normalised the mean is far larger than the deviation.
    pictures = images() + 1000
    pixels = patchify(pictures.double(), (8, 8)).unflatten(2, (-1, 3))
    expected = pixels.var(2, correction=0).mean(2).float()
    torch.testing.assert_close(patch_variance(pictures, (2, 3)), expected, rtol=1e-5, atol=0)


def test_patch_variance_leaves_out_what_is_not_valid():
    pictures, valid = images(), torch.ones(4, 6, dtype=torch.bool)
    valid[:, 1] = False
    expected = patch_variance(pictures, (2, 3))
    pictures[:, :, :8, 8:16] = torch.nan
    found = patch_variance(pictures, (2, 3), valid)
    assert torch.equal(found, expected.where(valid, 0.0))
    assert (reward_scale(pictures, (2, 3), valid) > 0).all()


def test_a_patch_known_by_its_mean_alone_pays_less_than_1():
    # Noise, structure and nothing at all: the best constant has the variance as its error.
    pictures = images()
    pictures[0, :, :8] *= 100
    pictures[1] = 0.5
    error = patch_variance(pictures, (2, 3))
    reward = error / reward_scale(pictures, (2, 3))
    assert reward.isfinite().all()
    assert (reward < 1).all()
    assert (reward[1] == 0).all()
    # Within an image the largest is at most twice the mean's, however loud the noise is.
    assert reward[0].max() < 1
    assert reward[0].max() > 0.5


@pytest.mark.parametrize("estimator", ["straight_through", "score_function", "ranking"])
def test_the_network_is_paid_the_scaled_error(estimator):
    pictures = images()
    error = torch.rand(4, 6)
    plain = masking(estimator=dict(type=estimator))
    scaled = masking(estimator=dict(type=estimator), reward="variance_normalised")
    torch.manual_seed(1)
    one = plain(pictures)
    torch.manual_seed(1)
    other = scaled(pictures)
    assert torch.equal(one.mask, other.mask)
    assert one.learned.reward_scale is None
    variance = patch_variance(pictures, (2, 3))
    relative = error / (variance + variance.mean(1, keepdim=True))
    expected, unscaled = gradient(plain, one, relative), gradient(plain, plain(pictures), error)
    found = gradient(scaled, other, error)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    assert not all(torch.allclose(x, y) for x, y in zip(found, unscaled, strict=True))


def test_the_threshold_hears_of_the_error_itself():
    options = dict(threshold=dict(type="difficulty"), random_share=0.5)
    seen = []
    for reward in ("error", "variance_normalised"):
        strategy = masking(reward=reward, **options)
        patch_mask = strategy(images())
        patch_mask.learned.objective(torch.arange(24.0).reshape(4, 6))
        seen.append(strategy.threshold.errors.clone())
    assert seen[0].sum() > 0
    assert torch.equal(*seen)


def test_the_scale_stays_with_its_image_when_masks_are_shuffled():
    strategy = ShuffledMasking(masking(reward="variance_normalised"))
    assert torch.equal(strategy(images()).learned.reward_scale, reward_scale(images(), (2, 3)))


@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.0])
def test_the_entropy_term_evens_the_logits_whatever_the_strength(strength):
    strategy = masking(strength=strength, standardise=False, entropy_weight=1.0)
    pictures = images()
    pictures[..., :8] += 8
    with torch.no_grad():  # an uneven start
        for layer in (0, 2, 4):
            strategy.network.convolutions[layer].weight *= 4
    optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
    entropies = []
    for _ in range(20):
        patch_mask = strategy(pictures)
        entropies.append(float(logit_entropy(patch_mask.learned.logits.detach()).mean()))
        optimizer.zero_grad()
        # Patches of one error: the estimator has nothing to say.
        patch_mask.learned.objective(torch.ones(4, 6)).backward()
        optimizer.step()
    assert entropies[0] < 0.99
    assert entropies[-1] > entropies[0] + 0.005


def test_the_entropy_is_that_of_the_first_draw():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0], [0.0, 0.0, -50.0, -50.0]])
    torch.testing.assert_close(logit_entropy(logits), torch.tensor([1.0, 0.0, 0.5]))


def test_a_detached_mask_keeps_no_graph():
    patch_mask = masking(entropy_weight=1.0)(images())
    assert patch_mask.learned.regulariser.requires_grad
    assert not patch_mask.detach().learned.regulariser.requires_grad


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(reward="variance"), "unknown reward 'variance'; expected one of"),
        (dict(entropy_weight=-1.0), "entropy_weight must be finite and cannot be negative"),
        (dict(entropy_weight=float("nan")), "entropy_weight must be finite"),
        (dict(entropy_weight=float("inf")), "entropy_weight must be finite"),
    ],
)
def test_bad_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        masking(**option)


@pytest.mark.parametrize("colour", [0.3, -2.0])
def test_a_batch_that_is_flat_as_a_whole_is_rewarded_no_more_than_a_thousandfold(colour):
    """1e-4 of noise on one colour, over its own variance, would be 1e8 times that of the colour."""
    scale = reward_scale(colour + 1e-4 * images(1), (2, 3))
    assert (scale >= 0.00099 * colour**2).all()
    assert (scale < 0.00101 * colour**2).all()
    assert (reward_scale(torch.zeros(2, 3, 16, 24), (2, 3)) == 1).all()


@pytest.mark.parametrize("factor", [2.0**-8, 2.0**8])
def test_the_reward_is_the_same_for_pixels_from_0_to_1_and_from_0_to_255(factor):
    pictures = images().abs()
    pictures[1] = 0.5
    scale = reward_scale(pictures, (2, 3))
    assert torch.equal(reward_scale(factor * pictures, (2, 3)), factor**2 * scale)
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:, 1] = False
    pictures[:, :, :8, 8:16] = torch.nan
    assert torch.isfinite(reward_scale(pictures, (2, 3), valid)).all()
