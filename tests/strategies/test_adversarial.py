"""Laws of the strategies, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amn_masking import AdversarialMasking, RandomMasking
from tests.helpers import draws

STRATEGIES = {
    "random": lambda **options: RandomMasking(**options),
    "adversarial": lambda **options: AdversarialMasking(**options),
    "noiseless": lambda **options: AdversarialMasking(
        estimator=dict(type="straight_through", noise=0.0), **options
    ),
}
each_strategy = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES.keys())


def images(grid, batch=2, patch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, grid[0] * patch, grid[1] * patch, generator=generator)


@each_strategy
@given(case=draws.lengths_and_ratios(), batch=draws.batches, seed=draws.seeds)
def test_the_count_is_the_reference_s(make, case, batch, seed):
    grid, ratio = case
    masking = make(mask_ratio=ratio, patch_size=4)
    patch_mask = masking(images(grid, batch, seed=seed))
    length = grid[0] * grid[1]
    assert patch_mask.grid == grid
    assert patch_mask.mask.shape == (batch, length)
    assert (patch_mask.mask.sum(1) == length - int(length * (1 - ratio))).all()
    assert patch_mask.num_visible == int(length * (1 - ratio))


@each_strategy
@given(case=draws.lengths_and_ratios(), seed=draws.seeds)
def test_the_surrogate_is_the_mask_bit_for_bit(make, case, seed):
    grid, ratio = case
    patch_mask = make(mask_ratio=ratio, patch_size=4)(images(grid, seed=seed))
    assert torch.equal(patch_mask.surrogate, patch_mask.mask)
    assert not patch_mask.mask.requires_grad
    assert not patch_mask.ids_shuffle.requires_grad


@pytest.mark.parametrize("strategy", [RandomMasking, AdversarialMasking])
def test_the_generator_decides(strategy):
    masking, pictures = strategy(mask_ratio=0.5, patch_size=4), images((8, 8))

    def draw(seed):
        return masking(pictures, generator=torch.Generator().manual_seed(seed)).mask

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


@given(case=draws.lengths_and_ratios(), batch=draws.batches, seed=draws.seeds)
def test_random_masking_is_the_reference_s_given_the_same_noise(case, batch, seed):
    grid, ratio = case
    length = grid[0] * grid[1]
    noise = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed))
    patch_mask = RandomMasking(ratio, 4)(
        images(grid, batch), generator=torch.Generator().manual_seed(seed)
    )
    for row in range(batch):
        if len(set(noise[row].tolist())) < length:
            continue  # equal noise: the reference leaves the order open
        by_noise = sorted(range(length), key=lambda patch: noise[row, patch].item())
        keep = int(length * (1 - ratio))
        assert patch_mask.ids_keep[row].tolist() == by_noise[:keep]
        assert patch_mask.ids_restore[row].tolist() == [by_noise.index(p) for p in range(length)]


@each_strategy
def test_images_of_a_batch_do_not_influence_each_other(make):
    masking = make(mask_ratio=0.5, patch_size=4).eval()
    pictures = images((5, 5), batch=3)
    other = pictures.clone()
    other[1] = torch.randn_like(other[1])
    one, two = (
        masking(p, generator=torch.Generator().manual_seed(0)).mask for p in (pictures, other)
    )
    assert torch.equal(one[[0, 2]], two[[0, 2]])


def test_larger_scores_are_masked_first_in_eval():
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4).eval()
    patch_mask = masking(images((6, 6)))
    scores, mask = patch_mask.patch_scores, patch_mask.mask.bool()
    for row in range(2):
        assert scores[row][mask[row]].min() > scores[row][~mask[row]].max()
        above = patch_mask.scores[row] > patch_mask.threshold[row]
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
    patch_mask = masking(images((6, 6), batch=4))
    scores = patch_mask.patch_scores
    assert torch.equal(patch_mask.mask.bool(), scores > scores.mean(1, keepdim=True))


def test_constant_images_get_random_masks_not_the_first_patches():
    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4, network=dict(num_layers=1)).eval()
    for layer in masking.network.layers:
        nn_init_zero(layer)
    frequency = masking(torch.zeros(2000, 3, 8, 8)).mask.mean(0)
    assert (frequency - 0.5).abs().max() < 4 * 0.5 / 2000**0.5


def nn_init_zero(layer):
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)


def test_masks_are_made_in_float32_under_autocast():
    masking, pictures = AdversarialMasking(mask_ratio=0.5, patch_size=4).eval(), images((6, 6))
    plain = masking(pictures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = masking(pictures)
    assert cast.logits.dtype == torch.float32
    assert torch.equal(cast.logits, plain.logits)
    half = masking.bfloat16()(pictures.bfloat16())
    assert half.mask.dtype == torch.float32
    assert (half.mask.sum(1) == 18).all()


def test_nothing_with_a_graph_stays_on_the_module():
    import copy

    masking = AdversarialMasking(mask_ratio=0.5, patch_size=4)
    masking(images((6, 6)))
    copy.deepcopy(masking)
    for module in masking.modules():
        for value in vars(module).values():
            assert not (isinstance(value, torch.Tensor) and value.grad_fn is not None)


# --- total_loss


@given(seed=draws.seeds, lambda_adv=st.floats(0, 4), score_weighted=st.booleans())
def test_total_loss_adds_the_terms_as_they_are_defined(seed, lambda_adv, score_weighted):
    """The value patch by patch, and the gradients that go to the two networks."""
    torch.manual_seed(seed)
    loss = dict(lambda_adv=lambda_adv, score_weighted=score_weighted)
    masking = AdversarialMasking(0.5, 4, loss=loss)
    patch_mask = masking(images((3, 4), batch=2, seed=seed))
    patch_mask.logits.retain_grad()
    error = torch.rand(2, 12, requires_grad=True)
    reconstruction = (error * torch.rand(2, 12)).sum()  # any loss of a codebase's own
    (own,) = torch.autograd.grad(reconstruction, error, retain_graph=True)
    total = masking.total_loss(reconstruction, error, patch_mask)
    total.backward(retain_graph=True)
    got = patch_mask.logits.grad.clone()

    mask, scores = patch_mask.mask.tolist(), patch_mask.scores.tolist()
    adversarial = 0.0
    for row in range(2):
        weight = [
            m * (s if score_weighted else 1) for m, s in zip(mask[row], scores[row], strict=True)
        ]
        for patch in range(12):
            share = weight[patch] / sum(weight) / 2
            adversarial += share * error[row, patch].item()
            expected = own[row, patch].item() + lambda_adv * share
            assert error.grad[row, patch].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    value = reconstruction.item() + lambda_adv * adversarial
    assert total.item() == pytest.approx(value, rel=1e-4, abs=1e-6)

    reward = masking.estimator.objective(error.detach(), patch_mask)
    (plain,) = torch.autograd.grad(reward, patch_mask.logits)
    torch.testing.assert_close(got, lambda_adv * plain)


def test_total_loss_of_a_strategy_that_learns_nothing_is_the_codebase_s():
    masking = RandomMasking(0.5, 4)
    reconstruction = torch.tensor(3.0, requires_grad=True)
    patch_mask = masking(images((3, 4)))
    assert masking.total_loss(reconstruction, torch.rand(2, 12), patch_mask) is reconstruction


def test_total_loss_refuses_an_error_that_is_not_one_number_per_patch():
    masking = AdversarialMasking(0.5, 4)
    patch_mask = masking(images((3, 4)))
    with pytest.raises(ValueError, match=r"\(B, L\) = \(2, 12\), got \(2, 12, 48\)"):
        masking.total_loss(torch.tensor(1.0), torch.rand(2, 12, 48), patch_mask)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(threshold=dict(type="median")), ValueError, "unknown threshold type 'median'.*mean"),
        (dict(threshold="mean"), TypeError, r"threshold=dict\(type='quantile', ...\), got 'mean'"),
        (dict(estimator="gumbel"), TypeError, "estimator expected a dict"),
        (dict(network="small"), TypeError, "network expected a dict"),
        (dict(mask_ratio=7, threshold=dict(type="mean")), ValueError, r"must lie in \(0, 1\)"),
        (dict(temperature=float("nan")), ValueError, "temperature must be positive"),
        (dict(threshold=dict(type="mean", ratio_range=0.5)), ValueError, "expected two numbers"),
        (dict(patch_size=16.0), ValueError, "positive integers, got 16.0"),
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
        (dict(threshold=dict(scale=2)), ValueError, r"expected threshold=dict\(type="),
        (dict(estimator=dict(type="reinforce")), ValueError, "unknown estimator type 'reinforce'"),
        (dict(estimator=dict(type="straight_through", T=1)), TypeError, "does not take T"),
        (dict(network=dict(depth=3)), TypeError, "does not take depth; it takes in_channels"),
        (dict(loss=dict(type="MSE")), ValueError, "unknown loss type 'MSE'"),
        (dict(mask_ratio=1.0), ValueError, r"must lie in \(0, 1\), got 1.0"),
        (dict(mask_ratio=0), ValueError, r"must lie in \(0, 1\), got 0"),
        (dict(patch_size=0), ValueError, "patch_size must be one or two positive"),
        (dict(strength=2), ValueError, r"strength must lie in \[-1, 1\], got 2"),
        (dict(strength=dict(type="cosine")), ValueError, "unknown schedule type 'cosine'"),
        (dict(strength="strong"), TypeError, "strength must be a number or"),
        (dict(random_share=-0.1), ValueError, r"random_share must lie in \[0, 1\]"),
        (dict(temperature=0), ValueError, "temperature must be positive"),
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


@each_strategy
def test_wrong_images_are_refused(make):
    masking = make(mask_ratio=0.5, patch_size=4)
    with pytest.raises(ValueError, match="10 x 8 pixels does not split into patches of 4 x 4"):
        masking(torch.zeros(1, 3, 10, 8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(3, 8, 8\)"):
        masking(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="leaves none visible"):
        make(mask_ratio=0.9, patch_size=4)(torch.zeros(1, 3, 8, 8))


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        AdversarialMasking(mask_ratio=0.5, patch_size=4)(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(bad):
    masking, pictures = AdversarialMasking(mask_ratio=0.5, patch_size=4), images((4, 4))
    pictures[1, 0, 3, 3] = bad
    with pytest.raises(ValueError, match=r"scores are not finite.*images.*weights"):
        masking(pictures)


def test_a_config_s_scope_mark_is_ignored():
    masking = AdversarialMasking(
        threshold=dict(type="quantile", _scope_="mmpretrain"),
        strength=dict(type="linear", start=0, end=1, _scope_="mmpretrain"),
    )
    assert masking.strength == 0
