"""Masks that set themselves, as the study tried them: the rules are those that the page says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")
pytest.importorskip("sklearn")

from benchmarks.study import store, training
from benchmarks.study.__main__ import RESULTS
from benchmarks.study.data import load
from benchmarks.study.experiments import EXPERIMENTS
from benchmarks.study.learning import (
    ARMS,
    LAG,
    RULER_IMAGES,
    SEGMENTS,
    Bandit,
    RegretMasking,
    RulerHook,
    held_out,
)
from benchmarks.study.pool import csv_of
from benchmarks.study.settings import RECIPES, Setting, random_masks

RECIPE = RECIPES["digits8"]
SIZE = dict(mask_ratio=0.5, network=dict(channels=4, downsample=1))


@pytest.mark.parametrize("best", range(len(ARMS)))
def test_the_bandit_finds_the_best_arm_and_follows_it_when_it_moves(best):
    bandit, noise = Bandit(len(ARMS)), torch.Generator().manual_seed(best)
    played = []
    for segment in range(400):
        good = best if segment < 200 else (best + 1) % len(ARMS)
        arm = bandit.choose()
        bandit.tell(arm, (arm == good) + 0.3 * float(torch.randn((), generator=noise)))
        played.append(arm == good)
    assert sum(played[50:200]) > 75  # more than half, where chance is a quarter
    assert sum(played[250:]) > 75


def late_share(choice, best, seed, trend=0.0, flops=(1.0, 1.0, 1.0, 1.0)):
    """How often the best ratio is played in the second half of a training, of which each segment
    lowers the ruler's logarithm by 1 more under that ratio, with noise, and more at first.
    """
    noise, level = torch.Generator().manual_seed(seed), [0.0]
    hook = RulerHook(torch.empty(0), flops, SEGMENTS, choice, seed)
    hook.ruler = lambda model: math.exp(level[0])
    masking = SimpleNamespace(mask_ratio=0.5)
    runner = SimpleNamespace(model=SimpleNamespace(masking=masking), iter=0)
    for runner.iter in range(SEGMENTS):
        hook.before_train_iter(runner, runner.iter)
        fall = (masking.mask_ratio == ARMS[best]) + trend * math.exp(-runner.iter / 8)
        level[0] -= fall + 0.3 * float(torch.randn((), generator=noise))
    hook.after_train(runner)
    assert masking.mask_ratio == pytest.approx(sum(hook.ratios) / SEGMENTS)
    half = hook.ratios[SEGMENTS // 2 :]
    most = max(ARMS, key=half.count)
    assert half.count(runner.model.ruled["late_ratio"]) == half.count(most)
    assert runner.model.ruled["late_share"] == half.count(most) / len(half)
    return half.count(ARMS[best]) / len(half)


@pytest.mark.parametrize("best", range(len(ARMS)))
def test_the_ratio_that_lowers_the_ruler_most_is_found_in_one_training(best):
    def mean(choice, trend, flops=(1.0, 1.0, 1.0, 1.0)):
        return sum(late_share(choice, best, seed, trend, flops) for seed in range(8)) / 8

    assert mean("reward", 0.0) > 0.7
    assert mean("less trend", 0.0) > 0.7
    # Where the ruler falls fastest at first, as it does, only without the trend.
    assert mean("less trend", 20.0) > 0.7
    assert mean("reward", 20.0) < 0.5
    assert mean("less trend", 20.0, (1.0, 0.86, 0.72, 0.46)) > 0.5  # as on digits
    assert 0.1 < mean("drawn", 0.0) < 0.4  # without a look: a quarter


def test_a_ratio_is_worth_its_decrease_per_flop():
    # At four times the FLOPs a fall of 1 is worth a quarter, and a fall of 0 nothing less.
    dear = [1.0 if arm else 4.0 for arm in range(len(ARMS))]
    assert late_share("reward", 0, 0, trend=0.6, flops=dear) < late_share("reward", 0, 0, trend=0.6)


def test_another_choice_is_refused():
    with pytest.raises(ValueError, match="'less trend' or 'drawn', got 'best'"):
        RulerHook(torch.empty(0), (), 1, "best")


def reward_of(masking, images, error):
    """The reward that the estimator is given for an error."""
    patch_mask = masking(images)
    given = []
    masking.estimator.objective = lambda reward, learned: given.append(reward) or reward.sum() * 0
    patch_mask.learned.objective(error(patch_mask))
    return given[0], patch_mask


def built(kind):
    model = training.build(Setting(kind, RECIPE, dict(type=kind, **SIZE)), 0).train()
    return model, load(RECIPE.data, 0).train


def test_regret_is_0_where_the_autoencoder_is_its_reference_and_else_the_difference():
    model, images = built("RegretMasking")
    assert isinstance(model.masking, RegretMasking)
    pixels = images.centre()[:8]
    model.masking.reference = [model]
    other = training.build(random_masks(RECIPE, 0.5), 1).train()

    def error(mask, of=model):
        with torch.no_grad():
            return of.error_under(mask.detach(), pixels, [])

    reward, _ = reward_of(model.masking, pixels, error)
    assert torch.allclose(reward, torch.zeros_like(reward))
    model.masking.reference = [other]
    reward, mask = reward_of(model.masking, pixels, error)
    assert torch.allclose(reward, (error(mask) - error(mask, other)) * mask.mask)
    assert not any("reference" in name for name in model.state_dict())


def attached(kind):
    """A model whose masks ask a copy, and that copy."""
    model, images = built(kind)
    training.attach(model, images, Setting("", RECIPE, dict(type=kind, **SIZE)), 0)
    assert not any("autoencoder" in name for name in model.state_dict())
    return model, model.masking.autoencoder[1], images.centre()[:8]


def weight_of(model):
    return model.backbone.layers[0].attn.qkv.weight


def errors(of, pixels):
    def error(mask):
        with torch.no_grad():
            return of.error_under(mask.detach(), pixels, [])

    return error


def test_a_snapshot_is_one_to_two_lags_old_and_pays_its_error_less_the_own():
    model, copy, pixels = attached("SnapshotProgressMasking")
    for step in range(3 * LAG + 10):
        with torch.no_grad():
            weight_of(model).fill_(0.001 * step)
        model.masking.follow()
        begun = LAG * (step // LAG - 1)
        assert float(weight_of(copy)[0, 0]) == pytest.approx(0.001 * max(0, begun)), step
        if step in (5, LAG + 5):
            reward, mask = reward_of(model.masking, pixels, errors(model, pixels))
            model.masking.steps -= 1  # the mask was made by one more step
            paid = errors(copy, pixels)(mask) - errors(model, pixels)(mask)
            assert torch.allclose(reward, paid * mask.mask * (step > LAG), atol=1e-6)
            assert (reward.abs().max() > 0) == (step > LAG)


def test_regret_of_an_average_is_paid_once_the_average_is_the_better_one():
    model, copy, pixels = attached("AveragedRegretMasking")
    before = weight_of(copy).clone()
    with torch.no_grad():
        weight_of(model).mul_(1.5)
    for factor, paid in ((0.5, False), (4.0, True), (0.9, True), (0.0, True)):
        # The mean of some hundred steps, not the last one, says who is better.
        reward, mask = reward_of(
            model.masking, pixels, lambda mask, f=factor: f * errors(copy, pixels)(mask)
        )
        difference = (factor - 1) * errors(copy, pixels)(mask) * mask.mask
        assert torch.allclose(reward, difference * paid, atol=1e-5), factor
    assert torch.allclose(
        weight_of(copy), before + (1 - 0.99**4) * (weight_of(model) - before), atol=1e-6
    )


def test_progress_pays_for_an_error_that_falls_and_not_for_one_that_stays():
    model, images = built("ProgressMasking")
    masking, pixels = model.masking, images.centre()[:32]
    optimizer = torch.optim.Adam(masking.fast.parameters(), lr=1e-2)
    falling = torch.arange(16) < 8  # the left half of the patches, by number
    rewards = []
    for step in range(400):
        level = torch.where(falling, 2.0 - 0.005 * step, torch.tensor(2.0))
        patch_mask = masking(pixels)
        given = []
        masking.estimator.objective = lambda reward, learned, given=given: (
            given.append(reward) or reward.sum() * 0
        )
        optimizer.zero_grad()
        patch_mask.learned.objective(level.expand(32, -1)).backward()
        optimizer.step()
        rewards.append((given[0], patch_mask.mask))
    paid, hidden = (torch.cat(part) for part in zip(*rewards[200:], strict=True))
    mean = paid.sum(0) / hidden.sum(0)
    assert mean[falling].mean() > mean[~falling].mean() + 0.05
    # Once the error stays, nothing is paid, though the critics go on learning.
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    stays = torch.where(falling, 0.5, 2.0).expand(32, -1)
    for _ in range(800):
        patch_mask = masking(pixels)
        optimizer.zero_grad()
        patch_mask.learned.objective(stays).backward()
        optimizer.step()
    reward, mask = reward_of(masking, pixels, lambda mask: stays)
    assert reward.abs().sum() / mask.mask.sum() < 0.05 * mean[falling].mean()


def test_progress_pays_nothing_until_its_critics_have_settled():
    # An error that stays is no progress, but critics that rise to it take it for the reverse.
    paid = {}
    for settle in (0, 300):
        model, images = built("ProgressMasking")
        masking, pixels = model.masking, images.centre()[:32]
        masking.settle, rewards = settle, []
        optimizer = torch.optim.Adam(masking.fast.parameters(), lr=1e-2)
        for _ in range(310):
            patch_mask, given = masking(pixels), []
            masking.estimator.objective = lambda reward, learned, given=given: (
                given.append(reward) or reward.sum() * 0
            )
            optimizer.zero_grad()
            patch_mask.learned.objective(torch.ones(32, 16)).backward()
            optimizer.step()
            rewards.append(float(given[0].sum() / patch_mask.mask.sum()))
        paid[settle] = rewards
    assert min(paid[0]) < -0.3
    assert paid[300][:300] == [0.0] * 300
    assert all(0 < abs(reward) < 0.1 for reward in paid[300][300:])


def test_the_ruler_s_images_are_of_every_class_and_not_trained_on():
    images = load(RECIPE.data, 0).train
    kept, ruled = held_out(images, 0)
    assert len(kept.pixels) == len(kept.labels) == len(images.pixels) - RULER_IMAGES
    # By pixels, of which some images have the same.
    known = {
        bytes(x.numpy().tobytes()): y for x, y in zip(images.centre(), images.labels, strict=True)
    }
    assert {known[x.numpy().tobytes()] for x in ruled} == set(range(10))
    rest = kept.centre().flatten(1).unique(dim=0)
    both = torch.cat([rest, ruled.flatten(1).unique(dim=0)])
    assert len(both.unique(dim=0)) >= len(both) - 2
    assert (kept.labels == [known[x.numpy().tobytes()] for x in kept.centre()]).all()


@pytest.mark.parametrize(
    ("inner", "choice"),
    [("RandomMasking", "reward"), ("RandomMasking", "drawn"), ("ProgressMasking", "less trend")],
)
def test_a_ratio_by_ruler_is_one_of_the_arms_in_each_segment_and_the_mean_is_measured(
    inner, choice
):
    options = SIZE if inner == "ProgressMasking" else dict(mask_ratio=0.5)
    masking = dict(type="RulerMasking", masking=dict(type=inner, **options), choice=choice)
    setting = Setting("by ruler", replace(RECIPE, epochs=10), masking)
    model = training.build(setting, 0)
    seen, masked = [], []
    model.register_forward_hook(lambda *_: seen.append(model.masking.mask_ratio))
    model.masking.register_forward_hook(
        lambda _, args, mask: masked.append(float(mask.mask.mean()))
    )
    training.train(model, load(RECIPE.data, 0).train, setting, 0)
    assert set(seen) == set(ARMS) == set(masked)  # sixteen patches: each arm is a whole number
    assert model.masking.mask_ratio == pytest.approx(sum(seen) / len(seen))
    assert model.ruled["late_ratio"] in ARMS


def test_every_setting_of_the_study_says_its_random_share():
    for settings in EXPERIMENTS.values():
        for setting in settings():
            said = setting.to_json()
            if '"AdversarialMasking"' in said:
                assert '"random_share"' in said
                assert store.said_now(said) == said


def test_rows_without_a_random_share_had_none():
    masking = dict(type="ShuffledMasking", masking=dict(type="AdversarialMasking", mask_ratio=0.5))
    said = json.loads(store.said_now(Setting("x", RECIPE, masking).to_json()))
    assert said["masking"]["masking"]["random_share"] == 0.0
    plain = random_masks(RECIPE, 0.5).to_json()
    assert store.said_now(plain) == plain


@pytest.mark.parametrize(
    ("name", "split"),
    [("learning", "tune"), ("noise", "tune"), ("pilot", "tune"), ("learning_report", "report")],
)
def test_every_row_is_of_a_setting_and_of_its_split(name, split):
    known = {setting.to_json() for setting in EXPERIMENTS[name]()}
    rows = store.read(csv_of(RESULTS, name))
    assert rows
    assert {store.said_now(row["settings"]) for row in rows} <= known
    assert {row["split"] for row in rows} == {split}
