"""Laws of the adversarial strategy, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, MaskingNetwork
from amn_masking.strategies import HardPatchMasking, RandomRatioMasking, ShuffledMasking
from tests.helpers.pictures import images_of

HALVES = {16: 8, 14: 7, 8: 4, 4: 2, 7: 1, 12: 6, 9: 3, 6: 3, 3: 1, 2: 1, 1: 1, 32: 16}
OBLONG = {
    (16, 8): 4,
    (8, 16): 4,
    (12, 18): 6,
    (7, 14): 1,
    (5, 7): 1,
    (4, 32): 2,
    (12, 16): 4,
    (8, 6): 2,
}


@pytest.mark.parametrize(("patch_size", "downsample"), (HALVES | OBLONG).items())
@pytest.mark.parametrize("kind", [AdversarialMasking, HardPatchMasking])
def test_a_network_without_downsample_pools_the_image_by_half_a_patch(kind, patch_size, downsample):
    for network in (None, {}, dict(channels=4), dict(type="MaskingNetwork", norm="group")):
        masking = kind(patch_size=patch_size, network=network)
        assert masking.network.downsample == downsample
    height, width = masking.patch_size
    learned = masking(torch.randn(2, 3, 4 * height, 4 * width)).learned
    assert learned.score_map.shape[2:] == (4 * height // downsample, 4 * width // downsample)


@pytest.mark.parametrize(
    ("patch_size", "downsample", "scores"),
    [
        ((16,), 8, (8,)),
        ((5,), 1, (20,)),
        ((2, 16, 16), (1, 8, 8), (8, 8, 8)),
        ((8, 8, 8), (4, 4, 4), (8, 8, 8)),
        ((4, 16, 12), (2, 4, 4), (8, 16, 12)),
    ],
)
@pytest.mark.parametrize("kind", [AdversarialMasking, HardPatchMasking])
def test_patches_of_other_dimensions_pick_the_convolutions(kind, patch_size, downsample, scores):
    masking = kind(patch_size=patch_size, network=dict(channels=2))
    assert masking.network.dimensions == len(patch_size)
    assert masking.network.downsample == downsample
    learned = masking(torch.randn(2, 3, *[4 * side for side in patch_size])).learned
    assert learned.score_map.shape[2:] == scores


@pytest.mark.parametrize("kind", [AdversarialMasking, HardPatchMasking])
def test_the_specification_s_network_is_asked_for(kind):
    for network in (dict(downsample=1), MaskingNetwork()):
        assert kind(network=network).network.downsample == 1
    assert kind(network=dict(downsample=4)).network.downsample == 4
    one = torch.nn.Conv2d(3, 1, 1)
    assert kind(network=one).network is one


def test_larger_scores_are_masked_first_in_eval():
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4).eval()
    patch_mask = masking(images_of((6, 6)))
    learned, mask = patch_mask.learned, patch_mask.mask.bool()
    scores = learned.patch_scores
    for row in range(2):
        assert scores[row][mask[row]].min() > scores[row][~mask[row]].max()
        above = learned.relative_scores[row] > learned.threshold[row]
        assert torch.equal(above, mask[row])


def test_patches_are_scored_where_they_are():
    """A network that reads brightness masks the bright patches: nothing is transposed."""
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4).eval()
    masking.network.forward = lambda x: torch.sigmoid(x.mean(1, keepdim=True))
    pictures = torch.zeros(1, 3, 8, 16)
    bright = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0]])
    pictures += bright.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(masking(pictures).mask.reshape(2, 4), bright)


def test_free_counts_follow_the_mean_threshold():
    masking = AdversarialMasking(
        patch_size=4, threshold=dict(type="mean", ratio_range=(0.1, 0.9)), standardise=False
    ).eval()
    assert masking.free_counts
    patch_mask = masking(images_of((6, 6), batch=4))
    scores = patch_mask.learned.patch_scores
    assert torch.equal(patch_mask.mask.bool(), scores > scores.mean(1, keepdim=True))


def test_constant_images_get_random_masks_in_training_and_spread_ones_in_eval():
    """Not the first patches, as a plain sort would have it."""
    noiseless = dict(type="straight_through", noise=0.0)
    masking = AdversarialMasking(0.5, 4, network=dict(num_layers=1), estimator=noiseless)
    for layer in masking.network.convolutions:
        nn_init_zero(layer)
    frequency = masking(torch.zeros(2000, 3, 8, 8)).mask.mean(0)
    assert (frequency - 0.5).abs().max() < 4 * 0.5 / 2000**0.5
    mask = masking.eval()(torch.zeros(2, 3, 56, 56)).mask.reshape(2, 14, 14)
    assert torch.equal(mask, masking(torch.zeros(2, 3, 56, 56)).mask.reshape(2, 14, 14))
    # Every row and column, and every quarter of the image, has its share, give or take two.
    for lines in (mask.sum(1), mask.sum(2)):
        assert ((lines - 7).abs() <= 2).all()
    for quarter in (mask[:, :7, :7], mask[:, :7, 7:], mask[:, 7:, :7], mask[:, 7:, 7:]):
        assert ((quarter.sum((1, 2)) - 24.5).abs() <= 2).all()


def nn_init_zero(layer):
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)


def test_masks_are_made_in_float32_under_autocast():
    masking, pictures = AdversarialMasking(mask_ratio=0.5, patch_size=4).eval(), images_of((6, 6))
    plain = masking(pictures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = masking(pictures)
    assert cast.learned.logits.dtype == torch.float32
    assert torch.equal(cast.learned.logits, plain.learned.logits)
    half = masking.bfloat16()(pictures.bfloat16())
    assert half.mask.dtype == torch.float32
    assert (half.mask.sum(1) == 18).all()


def test_nothing_with_a_graph_stays_on_the_module():
    import copy

    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4)
    masking(images_of((6, 6)))
    copy.deepcopy(masking)
    for module in masking.modules():
        for value in vars(module).values():
            assert not (isinstance(value, torch.Tensor) and value.grad_fn is not None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(threshold=dict(type="median")), ValueError, "unknown threshold type 'median'.*mean"),
        (dict(threshold="mean"), TypeError, r"threshold=dict\(type='quantile', ...\), got 'mean'"),
        (
            dict(estimator="gumbel"),
            TypeError,
            r"estimator expected a Estimator, or a dict such as estimator=dict\(type=",
        ),
        (dict(network="small"), TypeError, r"network expected a Module, or a dict"),
        (dict(mask_ratio=7), ValueError, r"must lie in \(0, 1\), got 7"),
        (
            dict(mask_ratio=0.5, threshold=dict(type="mean")),
            ValueError,
            "Mean.*takes no mask_ratio",
        ),
        (
            dict(threshold=dict(type="quantile", mask_ratio=0.8)),
            TypeError,
            "does not take mask_ratio.*the ratio is the strategy's own argument mask_ratio",
        ),
        (dict(temperature=float("nan")), ValueError, r"temperature must lie in \(0, inf\)"),
        (dict(threshold=dict(type="mean", ratio_range=0.5)), ValueError, "expected two numbers"),
        (dict(patch_size=16.0), ValueError, "got 16.0"),
        (dict(gate=True, estimator=dict(type="ranking")), ValueError, "or leave the gate out"),
        (dict(gate=True, estimator=dict(type="score_function")), ValueError, "has none there"),
        (
            dict(
                random_share=0.1,
                estimator=dict(type="score_function"),
                threshold=dict(type="mean"),
            ),
            ValueError,
            "expected random_share=0",
        ),
        (
            dict(
                standardise=False,
                estimator=dict(type="score_function"),
                threshold=dict(type="mean"),
            ),
            ValueError,
            "with threshold 'mean' expected standardise=True, because the mean error",
        ),
        (dict(threshold=dict(scale=2)), ValueError, r"expected threshold=dict\(type="),
        (dict(estimator=dict(type="reinforce")), ValueError, "unknown estimator type 'reinforce'"),
        (dict(estimator=dict(type="straight_through", T=1)), TypeError, "does not take T"),
        (dict(network=dict(depth=3)), TypeError, "does not take depth; it takes in_channels"),
        (dict(loss=dict(type="MSE")), ValueError, "unknown loss type 'MSE'"),
        (dict(mask_ratio=1.0), ValueError, r"must lie in \(0, 1\), got 1.0"),
        (dict(mask_ratio=0), ValueError, r"must lie in \(0, 1\), got 0"),
        (dict(patch_size=0), ValueError, "patch_size must be one positive integer"),
        (dict(strength=2), ValueError, r"strength must lie in \[-1, 1\], got 2"),
        (dict(strength=dict(type="cosine")), ValueError, "unknown strength type 'cosine'"),
        (dict(strength="strong"), TypeError, "strength must be a number or"),
        (dict(random_share=-0.1), ValueError, r"random_share must lie in \[0, 1\]"),
        (dict(temperature=0), ValueError, r"temperature must lie in \(0, inf\), got 0"),
        (dict(estimator=dict(type="straight_through", temperature=0)), ValueError, "temperature"),
        (dict(estimator=dict(type="straight_through", noise=-1)), ValueError, "noise"),
        (
            dict(strength=dict(type="linear", start=0, end=1, begin=0.6, until=0.5)),
            ValueError,
            "begin <= until",
        ),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        AdversarialMasking(**options)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        AdversarialMasking(mask_ratio=0.5, patch_size=4)(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad):
    masking, pictures = AdversarialMasking(mask_ratio=0.5, patch_size=4), images_of((4, 4))
    pictures[1, 0, 3, 3] = bad
    with pytest.raises(ValueError, match=r"scores are not finite.*images.*weights"):
        masking(pictures)


def test_a_config_s_scope_mark_is_ignored():
    masking = AdversarialMasking(
        threshold=dict(type="quantile", _scope_="mmpretrain"),
        strength=dict(type="linear", start=0, end=1, _scope_="mmpretrain"),
    )
    assert masking.strength == 0


@pytest.mark.parametrize("temperature", [7.0, dict(start=1.0, end=2.0)])
def test_a_temperature_without_standardised_logits_is_refused(temperature):
    message = "temperature is that of standardised logits and has no part in standardise=False"
    with pytest.raises(ValueError, match=message):
        AdversarialMasking(0.5, 4, standardise=False, temperature=temperature)
    masking = AdversarialMasking(0.5, 4, standardise=False)
    masking(images_of((6, 6)))
    masking.temperature = temperature
    with pytest.raises(ValueError, match=message):
        masking(images_of((6, 6)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward", "variance_normalised"),
        ("reward", "variance_normalized"),
        ("gate", True),
        ("entropy_weight", -3.0),
        ("standardise", False),
    ],
)
def test_what_was_checked_with_the_model_is_fixed(name, value):
    """A method with normalised targets has refused reward='variance_normalised' at its start."""
    masking = AdversarialMasking(0.5, 4)
    before = getattr(masking, name)
    for strategy in (masking, ShuffledMasking(masking), copy.deepcopy(masking)):
        with pytest.raises(AttributeError, match=f"{name} is fixed when a strategy is made"):
            setattr(strategy, name, value)
    assert getattr(masking, name) == before


def test_a_gain_on_the_wrong_side_of_1_is_refused():
    for target, strength in ((1.2, -1.0), (0.8, 1.0), (1.2, dict(start=-1.0, end=-0.5))):
        with pytest.raises(ValueError, match=f"got {target} with strength="):
            AdversarialMasking(
                0.5, 4, threshold=dict(type="difficulty", target_gain=target),
                random_share=0.25, strength=strength,
            )  # fmt: skip
    for target, strength in ((1.2, 0.0), (0.8, 0.0), (1.2, dict(start=-1.0, end=1.0))):
        AdversarialMasking(
            0.5, 4, threshold=dict(type="difficulty", target_gain=target), random_share=0.25,
            strength=strength,
        )  # fmt: skip


def test_difficulty_refuses_masks_without_a_patch_chosen_by_score():
    options = dict(threshold=dict(type="difficulty"), strength=0.0)
    with pytest.raises(ValueError, match="expected random_share > 0 all the time, and not 1"):
        AdversarialMasking(0.5, 4, random_share=1.0, **options)
    AdversarialMasking(0.5, 4, random_share=dict(start=1.0, end=0.5), **options)


def test_a_temperature_of_an_estimator_that_is_a_schedule_is_refused():
    with pytest.raises(ValueError, match="the strategy's own temperature"):
        AdversarialMasking(estimator=dict(type="gumbel", temperature=dict(start=1.0, end=2.0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdversarialMasking(dict(start=0.5, end=0.05), 16),
        lambda: AdversarialMasking(0.05, 16),
        lambda: RandomRatioMasking(AdversarialMasking(), (0.05, 0.3)),
        lambda: ShuffledMasking(AdversarialMasking(dict(start=0.05, end=0.5), 16)),
    ],
)
def test_a_ratio_of_which_nothing_can_be_learned_is_refused_at_the_first_mask(make):
    images = torch.randn(2, 3, 64, 64)
    masking = make()
    with pytest.raises(ValueError, match=r"1 of each image.s 16 patches"):
        masking(images)
    make().eval()(images)
    with torch.no_grad():
        make()(images)


def test_a_loss_counts_as_the_user_s_own_when_it_is_given_set_or_changed():
    assert not AdversarialMasking().own_loss
    assert AdversarialMasking(loss=dict(lambda_adv=0.5)).own_loss
    changed, replaced = AdversarialMasking(), AdversarialMasking()
    changed.loss.lambda_adv = 3.0
    replaced.loss = CombinedAdversarialLoss(lambda_adv=9.0)
    images = torch.randn(2, 3, 64, 64)
    for masking in (changed, replaced, ShuffledMasking(changed)):
        assert masking.own_loss
        with pytest.raises(ValueError, match="another CombinedAdversarialLoss"):
            CombinedAdversarialLoss()(torch.rand(2, 16, 4), torch.rand(2, 16, 4), masking(images))


def test_a_network_of_one_s_own_keeps_its_own_defaults():
    class Own(torch.nn.Conv2d):
        def __init__(self, downsample=False):
            super().__init__(3, 1, 1)
            self.downsample = downsample

    assert AdversarialMasking(network=dict(type=Own)).network.downsample is False
