"""The watch: it speaks once where a masking network would never be trained, and else is silent."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from amn_masking import AdversarialMasking, CombinedAdversarialLoss, RandomMasking
from amn_masking.estimators import Ranking
from amn_masking.meters import adversarial_gain
from amn_masking.patches import patchify
from amn_masking.strategies import (
    BlockMasking,
    HardPatchMasking,
    RandomRatioMasking,
    ShuffledMasking,
)
from amn_masking.watch import STEPS

SIDE = 4
STEPS_TO_MOVE = 300


@pytest.fixture(autouse=True)
def sooner(monkeypatch):
    """The weights are looked at after 300 training masks, and not after 1,000."""
    monkeypatch.setattr("amn_masking.watch.STEPS_TO_MOVE", STEPS_TO_MOVE)


class Linear(nn.Module):
    """The smallest autoencoder: visible patches in, the mean of what is seen out."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * SIDE**2, 3 * SIDE**2)

    def forward(self, images, patch_mask):
        visible = patch_mask.gather_visible(patchify(images, (SIDE, SIDE)))
        return patch_mask.scatter(self.head(visible), torch.zeros(3 * SIDE**2))


class Training:
    """A real loop of plain PyTorch, of which each case changes one thing."""

    def __init__(self, masking, lambda_adv=0.5, progress=True, **more):
        self.masking, self.progress, self.more = masking, progress, more
        self.model = Linear()
        self.loss = CombinedAdversarialLoss(lambda_adv=lambda_adv)
        parameters = list(self.model.parameters())
        if more.get("optimized", True):
            parameters += [p for p in masking.parameters() if p.requires_grad]
        self.optimizer = more.get("optimizer", torch.optim.SGD)(parameters, lr=0.01)
        self.give = more.get("give", lambda patch_mask: patch_mask)

    def __call__(self, steps=STEPS + 20):
        for step in range(steps):
            images = torch.randn(2, 3, 8, 16)
            if self.progress:
                self.masking.set_progress(step / steps)
            patch_mask = self.masking(images)
            target = patchify(images, (SIDE, SIDE))
            pred = self.model(images, patch_mask)
            self.loss(pred, target, self.give(patch_mask)).backward()
            if (step + 1) % self.more.get("accumulate", 1) == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.more.get("after", lambda training, images: None)(self, images)


def warned(training, steps=STEPS + 20):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training(steps)
    return [str(warning.message) for warning in caught]


def masking(**options):
    return AdversarialMasking(0.5, SIDE, network=dict(channels=2), **options)


NEVER_TRAINED = {
    "the tensor and not the mask": (
        lambda: Training(masking(), give=lambda patch_mask: patch_mask.mask),
        "none of them reached a loss that trains.*PatchMask itself and not its tensor",
    ),
    "no mask": (
        lambda: Training(masking(), give=lambda patch_mask: None),
        r"none of them reached a loss that trains.*masking.total_loss\(",
    ),
    "not in the optimizer": (
        lambda: Training(masking(), optimized=False),
        r"weights have not moved in 300 training masks.*masking.parameters\(\)",
    ),
    "not in the optimizer after a warm-up": (
        lambda: Training(masking(strength=dict(start=0, end=1, begin=0.1)), optimized=False),
        "weights have not moved",
    ),
    "a schedule that is not told": (
        lambda: Training(masking(strength=dict(start=0, end=1)), progress=False),
        r"^strength has a schedule, but set_progress was never called in 100",
    ),
    "two of them": (
        lambda: Training(
            AdversarialMasking(dict(start=0.3, end=0.5), SIDE, strength=dict(start=-1, end=1)),
            progress=False,
        ),
        "^mask_ratio, strength has a schedule",
    ),
    "hard patches, by default": (
        lambda: Training(HardPatchMasking(0.5, SIDE), progress=False),
        "^random_share has a schedule",
    ),
    "behind a wrapper": (
        lambda: Training(
            RandomRatioMasking(AdversarialMasking(patch_size=SIDE), (0.4, 0.6)), optimized=False
        ),
        "weights have not moved",
    ),
}


@pytest.mark.parametrize("case", NEVER_TRAINED)
def test_where_the_network_is_never_trained_it_says_so_once(case):
    make, message = NEVER_TRAINED[case]
    training = make()
    late = "not moved" in message
    assert warned(training, (STEPS_TO_MOVE if late else STEPS) - 1) == []
    found = warned(training, 160 if late else 60)
    assert len(found) == 1
    assert re.search(message, found[0])
    assert warned(training, 3 * STEPS) == []


def evaluate(training, images):
    """Validation in train() and in eval(), and a meter; none of it trains."""
    with torch.no_grad():
        patch_mask = training.masking(images)
        training.loss(images, images, patch_mask)
        error = torch.rand(2, 8)
        adversarial_gain(lambda masks: error, patch_mask)
        training.masking.eval()(images)
        training.masking.train()


class Frozen(AdversarialMasking):
    def __init__(self):
        super().__init__(0.5, SIDE)
        self.network.requires_grad_(False)


class Brightness(nn.Module):
    def forward(self, images):
        return torch.sigmoid(images.mean(1, keepdim=True))


FINE = {
    "all at random for long": lambda: Training(
        masking(
            estimator=dict(type="score_function"),
            random_share=dict(start=1.0, end=0.5, begin=0.95, until=1.0),
        )
    ),
    "as it should be": lambda: Training(masking()),
    "Adam": lambda: Training(masking(), optimizer=torch.optim.Adam),
    "gradient accumulation": lambda: Training(masking(), accumulate=16),
    "strength 0": lambda: Training(masking(strength=0.0)),
    "strength 0, out of the optimizer": lambda: Training(masking(strength=0.0), optimized=False),
    "strength 0, a loss of the tensor": lambda: Training(
        masking(strength=0.0), give=lambda patch_mask: patch_mask.mask
    ),
    "a warm-up": lambda: Training(masking(strength=dict(start=0, end=1, begin=0.9))),
    "a frozen network": lambda: Training(Frozen(), give=lambda patch_mask: patch_mask.mask),
    "a network without parameters": lambda: Training(
        AdversarialMasking(0.5, SIDE, network=Brightness()), optimized=False
    ),
    "evaluation and meters between": lambda: Training(masking(), after=evaluate),
    "shuffled": lambda: Training(ShuffledMasking(masking())),
    "schedules that are told": lambda: Training(HardPatchMasking(0.5, SIDE)),
    "a schedule that does not move": lambda: Training(
        masking(strength=dict(start=1, end=1)), progress=False
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_where_all_is_well_it_is_silent(case):
    assert warned(FINE[case]()) == []


def test_evaluation_alone_is_never_taken_for_training():
    """The masks that are counted are those whose gradient is recorded, in train()."""
    masks = masking()
    with torch.no_grad():
        for _ in range(STEPS + 1):
            masks(torch.randn(1, 3, 8, 8))
    masks.eval()
    for _ in range(STEPS + 1):
        masks(torch.randn(1, 3, 8, 8))
    assert masks.watch.masks == 0


def test_at_lambda_0_the_words_do_not_blame_anybody():
    (found,) = warned(Training(masking(), lambda_adv=0.0))
    assert "with lambda_adv=0 nothing is wrong" in found


def test_as_many_accumulation_steps_as_masks_are_no_fault():
    assert warned(Training(masking(), accumulate=128), 250) == []


class NoGradient(Ranking):
    """Of which nothing can be learned."""

    def objective(self, reward, learned):
        return 0 * learned.logits.sum()


def test_a_gradient_of_exactly_0_is_told_although_adam_touches_the_weights():
    training = Training(masking(estimator=NoGradient()), optimizer=torch.optim.AdamW)
    assert warned(training, STEPS - 1) == []
    (found,) = warned(training, 60)
    assert "gradient was exactly 0 in 100 training masks" in found
    assert warned(training, 3 * STEPS) == []


@pytest.mark.parametrize("make", [RandomMasking, BlockMasking])
def test_a_schedule_of_a_strategy_that_learns_nothing_is_watched_too(make):
    schedule, images = dict(start=0.25, end=0.75), torch.randn(2, 3, 8, 16)
    for told, wrap in ((False, lambda x: x), (False, ShuffledMasking), (True, lambda x: x)):
        strategy = wrap(make(schedule, SIDE))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(STEPS + 20):
                if told:
                    strategy.set_progress(0.5)
                strategy(images)
        found = [str(warning.message) for warning in caught]
        assert [text[:27] for text in found] == ([] if told else ["mask_ratio has a schedule, "])


def test_a_weight_average_of_the_strategy_has_a_watch_of_its_own():
    original = masking()
    original(torch.randn(1, 3, 8, 8))
    other = copy.deepcopy(original)
    other(torch.randn(1, 3, 8, 8))
    assert (original.watch.masks, other.watch.masks) == (1, 2)


@pytest.mark.slow
def test_under_compile_it_rests():
    torch._dynamo.reset()
    masks = masking()
    compiled = torch.compile(lambda images: masks(images).mask, backend="eager", fullgraph=True)
    for _ in range(3):
        compiled(torch.randn(2, 3, 8, 8))
    assert masks.watch.masks == 0
    assert not masks.watch.looked


@pytest.mark.slow
@pytest.mark.parametrize("told", ["before", "after", "never", "nothing to tell"])
def test_a_schedule_that_nobody_moves_is_told_of_as_the_step_is_compiled(told):
    torch._dynamo.reset()
    share = 0.0 if told == "nothing to tell" else dict(start=1.0, end=0.5)
    masks = AdversarialMasking(0.5, SIDE, network=dict(channels=4), random_share=share)
    compiled = torch.compile(lambda images: masks(images).mask, backend="eager", fullgraph=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for step in range(4):
            if told == "before" or (told == "after" and step):
                masks.set_progress(step / 4)
            compiled(torch.randn(2, 3, 8, 8))
    texts = [str(one.message) for one in found if "set_progress" in str(one.message)]
    assert len(texts) == (told in ("after", "never")), texts
    assert all(text.startswith("random_share has a schedule, but set_progress") for text in texts)
