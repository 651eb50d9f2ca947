"""torch.compile without graph breaks, and gradcheck where a gradient is exact."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, RandomMasking
from amn_masking.estimators import ESTIMATORS
from amn_masking.estimators.score_function import log_bernoulli, log_plackett_luce
from amn_masking.network import standardise_logits, to_logits
from amn_masking.strategies import (
    AttentionMasking,
    BlockMasking,
    ColorNoiseMasking,
    HardPatchMasking,
    OracleMasking,
    RandomRatioMasking,
    ShuffledMasking,
    TubeMasking,
)
from amn_masking.strategies.adversarial import reverse_gradient
from amn_masking.thresholds import Mean, Quantile
from tests.conftest import thorough_only
from tests.helpers.pictures import SIDE, brightness, images_of
from tests.helpers.selections import choose


def step(masking, images, pred, target):
    """From images to the loss: everything of ours in a training step with fixed counts."""
    patch_mask = masking(images)
    visible = patch_mask.gather_visible(target)
    loss = CombinedAdversarialLoss()(pred, target, patch_mask)
    return loss, patch_mask.mask, patch_mask.scatter(visible, torch.zeros(()))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("random_share", [0.0, pytest.param(0.25, marks=thorough_only)])
def test_the_mask_path_compiles_without_a_graph_break(estimator, random_share):
    torch._dynamo.reset()
    torch.manual_seed(0)
    masking = AdversarialMasking(
        mask_ratio=0.75,
        patch_size=4,
        estimator=dict(type=estimator),
        network=dict(channels=4),
        random_share=random_share,
    )
    images, pred, target = torch.randn(2, 3, 24, 24), torch.randn(2, 36, 8), torch.randn(2, 36, 8)
    pred.requires_grad_()
    # Graph breaks show with any backend; one case goes through the real compiler, which is slow.
    real = estimator == "straight_through" and random_share == 0
    compiled = torch.compile(step, fullgraph=True, backend="inductor" if real else "aot_eager")

    loss, mask, _ = compiled(masking, images, pred, target)
    loss.backward()
    assert (mask.sum(1) == 27).all()
    assert masking.network.convolutions[0].weight.grad.abs().max() > 0

    # Without noise the compiled step is the eager one, gradients included.
    masking.eval()
    if random_share == 0:
        results = []
        for function in (compiled, step):
            masking.zero_grad()
            pred.grad = None
            loss, mask, restored = function(masking, images, pred, target)
            loss.backward()
            gradients = [p.grad.clone() for p in masking.parameters()]
            results.append([loss.detach(), mask, restored, pred.grad, *gradients])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def two_parts(masking, images, target):
    """Images to mask to loss, without the values of a network."""
    patch_mask = masking(images)
    target = patch_mask.scatter_decoded(patch_mask.gather_decoded(target))
    loss = CombinedAdversarialLoss(lambda_adv=0.0)(target + 1, target, patch_mask)
    return loss, patch_mask.mask, patch_mask.gather_visible(target)


WHOLE = {
    "random": lambda: RandomMasking(0.75, SIDE),
    "block": lambda: BlockMasking(0.75, SIDE, min_patches=4),
    "color noise": lambda: ColorNoiseMasking(0.75, SIDE),
    "attention": lambda: AttentionMasking(0.75, SIDE, 0.3, brightness),
    "oracle": lambda: OracleMasking(0.75, SIDE, brightness),
    "hard patches": lambda: HardPatchMasking(0.75, SIDE, dict(channels=4)),
    "adversarial": lambda: AdversarialMasking(0.75, SIDE, dict(channels=4), random_share=0.3),
    "every option": lambda: AdversarialMasking(
        0.75,
        SIDE,
        dict(channels=4, downsample=2, norm="group"),
        reward="variance_normalised",
        entropy_weight=0.1,
        gate=True,
    ),
    "shuffled": lambda: ShuffledMasking(AdversarialMasking(0.75, SIDE, dict(channels=4))),
    "left out, learned": lambda: AdversarialMasking(
        0.75, SIDE, dict(channels=4), prediction_ratio=0.25
    ),
    "left out, block": lambda: BlockMasking(0.75, SIDE, min_patches=4, prediction_ratio=0.25),
}


EVAL = {"hard patches", "adversarial", "every option", "left out, learned"}  # other code in eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "training"),
    [(name, True) for name in WHOLE] + [(name, False) for name in WHOLE if name in EVAL],
)
def test_every_strategy_compiles_for_every_batch_size_without_a_graph_break(name, training):
    """The last batch is smaller: the second size makes the batch symbolic, the third proves it."""
    torch._dynamo.reset()
    masking = WHOLE[name]().train(training)
    compiled = torch.compile(two_parts, fullgraph=True, backend="eager")  # the graph is dynamo's
    for batch in (4, 3, 2):
        _, mask, visible = compiled(
            masking, torch.randn(batch, 3, 24, 24), torch.randn(batch, 36, 8)
        )
        assert (mask.sum(1) == 27).all()
        assert visible.shape == (batch, 9, 8)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3], ids=["signals", "tubes of clips"])
def test_signals_and_tubes_compile_without_a_graph_break(slots):
    torch._dynamo.reset()
    grid = (36,) if slots == 1 else (slots, 6, 6)
    patch = (SIDE,) if slots == 1 else (slots * SIDE, SIDE, SIDE)
    inner = AdversarialMasking(0.75, patch, dict(channels=4))
    masking = inner if slots == 1 else TubeMasking(inner, slots)
    pred = torch.randn(2, 36 * slots, 8).requires_grad_()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss, mask, _ = compiled(masking, images_of(grid), pred, torch.randn(2, 36 * slots, 8))
    loss.backward()
    assert (mask.sum(1) == 27 * slots).all()
    assert inner.network.convolutions[0].weight.grad.abs().max() > 0


BREAKS = {  # they read a count back, so the graph breaks there, and only there
    "random ratio": lambda: RandomRatioMasking(RandomMasking(patch_size=SIDE), (0.25, 0.75)),
    "mean": lambda: AdversarialMasking(
        None, SIDE, dict(channels=4), dict(type="mean"), random_share=0.3
    ),
    "constant": lambda: AdversarialMasking(
        None, SIDE, dict(channels=4), dict(type="constant"), standardise=False
    ),
    "tracking": lambda: AdversarialMasking(0.5, SIDE, dict(channels=4), dict(type="tracking")),
    "difficulty": lambda: AdversarialMasking(
        0.5, SIDE, dict(channels=4), dict(type="difficulty"), random_share=0.3
    ),
}


# A strategy, and a threshold.
BREAKS_IN_CI = ("random ratio", "difficulty")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in BREAKS_IN_CI else pytest.param(name, marks=thorough_only) for name in BREAKS],
)
def test_free_counts_compile_for_every_batch_size_with_a_graph_break(name):
    torch._dynamo.reset()
    masking = BREAKS[name]()
    compiled = torch.compile(two_parts, backend="eager")
    for batch in (4, 3, 2):
        _, mask, visible = compiled(
            masking, torch.randn(batch, 3, 24, 24), torch.randn(batch, 36, 8)
        )
        assert mask.shape == (batch, 36)
        assert visible.shape[1] == int((1 - mask).sum(1).max())


def test_exact_gradients_pass_gradcheck():
    torch.manual_seed(0)
    logits = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(2, 6, dtype=torch.float64)
    fixed = choose(Quantile(), keys, keys, (2, 3), 0.5)
    assert gradcheck(lambda z: log_plackett_luce(z, keys, fixed), logits)

    def bernoulli(z):
        # keys: the mask stays as it is while z moves; tau moves with the scores of z.
        return log_bernoulli(z, choose(Mean(), keys, z.sigmoid(), (2, 3)))

    assert gradcheck(bernoulli, logits)
    assert gradcheck(standardise_logits, logits)
    assert gradcheck(lambda s: to_logits(s.sigmoid()), logits)
    assert gradcheck(lambda z: reverse_gradient(z, -1.0), logits)


def test_the_reversed_gradient_is_not_the_value_s():
    """The reversal is the one place where value and gradient part on purpose."""
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    reversed_ = reverse_gradient(x, 0.5)
    assert torch.equal(reversed_, x)
    reversed_.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, -0.5))


def test_the_loss_passes_gradcheck_for_the_prediction():
    torch.manual_seed(0)
    patch_mask = AdversarialMasking(mask_ratio=0.5, patch_size=4)(torch.randn(2, 3, 8, 12))
    target = torch.randn(2, 6, 3, dtype=torch.float64)
    pred = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    for criterion in ("L1", "L2"):
        loss = CombinedAdversarialLoss(criterion)
        assert gradcheck(lambda p, loss=loss: loss(p, target, patch_mask.detach()), pred)
