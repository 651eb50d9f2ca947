"""The laws that the adapter of every codebase obeys.

A law takes a target and gives True or False; None where it has nothing to say about that target.
The first sentence of each is its line in docs/results/adapters.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from amn_masking import PatchMask, RandomMasking
from amn_masking.network import pool_scores, standardise_logits, to_logits
from amn_masking.patches import masked_mean, patch_sides, spread_to_pixels
from tests.contract.cases import (
    BATCH,
    RATIO,
    STOCK_RATIO,
    also_with_some_left_out,
    close,
    gradients,
    grid_of,
    images_of,
    learned,
    looked_at,
    model_of,
    refused,
    shuffled,
    some_left_out,
    unchanged,
    visible,
)
from tests.contract.targets.target import Given, Step, Target


def exactly_ids_keep(target: Target) -> bool:
    """What enters the first encoder block are the prefix tokens and the tokens of ids_keep."""
    model, images = model_of(target), images_of(target)
    step = target.step(model, images, learned(target))
    return close(
        step.tokens, visible(target, target.all_tokens(model, images), step.patch_mask), 1e-6
    )


def prefix_survives(target: Target) -> bool | None:
    """Class and register tokens come first, unchanged bit for bit."""
    if not target.prefix:
        return None
    model, images = model_of(target), images_of(target)
    tokens = target.step(model, images, learned(target)).tokens
    tokens, whole = tokens[:, : target.prefix], target.all_tokens(model, images)
    return torch.equal(tokens, whole[:, : target.prefix])


def random_is_stock(target: Target) -> bool | None:
    """Random masking from the same noise gives the codebase's own tokens and loss."""
    model, images = model_of(target), images_of(target)
    noise, patch_mask = shuffled(target, STOCK_RATIO)
    stock = target.stock_step(model, images, noise)
    if stock is None:
        return None
    tokens, loss = stock
    step = target.step(model, images, Given(target.patch_size, patch_mask))
    return close(step.tokens, tokens, 1e-6) and (
        loss is None or close(step.reconstruction, loss, 1e-6)
    )


@also_with_some_left_out
def random_adds_nothing(target: Target, **options: float) -> bool:
    """Under RandomMasking what is minimised is the codebase's own loss, bit for bit."""
    masking = RandomMasking(STOCK_RATIO, target.patch_size, **options)
    step = target.step(model_of(target), images_of(target), masking)
    return torch.equal(step.loss, step.reconstruction) and step.loss.requires_grad


@also_with_some_left_out
def error_exact(target: Target, **options: float) -> bool | None:
    """The mean of the predicted patches' errors, which the adversary gets, is the codebase's own
    loss."""
    if not target.masked_mean:
        return None
    step = target.step(model_of(target), images_of(target), learned(target, **options))
    return close(masked_mean(step.error, step.patch_mask.predicted), step.reconstruction)


def soft_mask(logits: Tensor, tau: Tensor) -> Tensor:
    """sigmoid(z - tau), whose gradient does not move all logits of an image together."""
    slope = torch.sigmoid(logits - tau)
    slope = (slope * (1 - slope)).detach()
    common = (slope * logits).sum(1, keepdim=True) / slope.sum(1, keepdim=True)
    return torch.sigmoid(logits - (common - common.detach()) - tau)


@also_with_some_left_out
def gradient_up(target: Target, **options: float) -> bool:
    """The masking network gets -lambda times the gradient of straight_through's objective, written
    anew, and descending along it masks harder patches."""
    images = images_of(target)
    masking = learned(target, estimator=dict(type="straight_through"), **options)
    step = target.step(model_of(target), images, masking)
    got = gradients(step.loss, masking)
    mask, error = step.patch_mask.predicted, step.error.detach().float()
    masked = mask.sum(1, keepdim=True)
    advantage = mask * (error - (error * mask).sum(1, keepdim=True) / masked) / masked

    def masked_error(network: nn.Module, dtype: torch.dtype) -> Tensor:
        scores = pool_scores(network(images.to(dtype)), step.patch_mask.grid)
        tau = torch.logit(step.patch_mask.learned.threshold.to(dtype))[:, None]
        soft = soft_mask(standardise_logits(to_logits(scores), 1.0), tau)
        return (advantage.to(dtype) * soft).sum(1).mean()

    objective = masked_error(masking.network, torch.float32)
    expected = -masking.loss.lambda_adv * gradients(objective, masking)
    moved = copy.deepcopy(masking.network).double()
    before = masked_error(moved, torch.float64)
    with torch.no_grad():
        weights = nn.utils.parameters_to_vector(moved.parameters())
        nn.utils.vector_to_parameters(weights - 1e-3 * got / got.norm(), moved.parameters())
    risen = masked_error(moved, torch.float64) > before
    return bool(got.any()) and close(got, expected, 1e-3) and bool(risen)


def order_is_free(target: Target) -> bool:
    """The order in which visible patches are listed, and predicted ones, changes no error."""
    model, images = model_of(target), images_of(target)
    _, whole = shuffled(target, RATIO)
    for patch_mask in (whole, some_left_out(whole))[: 1 + target.leaves_out]:
        kept, decoded = patch_mask.num_visible, patch_mask.num_patches - patch_mask.num_left_out
        parts = patch_mask.ids_shuffle.tensor_split([kept, decoded], 1)
        turned = torch.cat([part.flip(1) for part in parts], 1)
        other = PatchMask.from_shuffle(
            turned, kept, patch_mask.grid, num_predicted=patch_mask.num_predicted
        )
        one, two = (
            target.step(model, images, Given(target.patch_size, m)) for m in (patch_mask, other)
        )
        mask = patch_mask.predicted
        if not (close(two.error * mask, one.error * mask) and torch.equal(other.predicted, mask)):
            return False
    return True


def batch_order(target: Target) -> bool:
    """Images and masks in another order give the same tokens and errors in that order."""
    model, images = model_of(target), images_of(target)
    _, patch_mask = shuffled(target, RATIO)
    order = torch.tensor([2, 0, 1])
    other = PatchMask.from_shuffle(
        patch_mask.ids_shuffle[order], patch_mask.num_visible, patch_mask.grid
    )
    one = target.step(model, images, Given(target.patch_size, patch_mask))
    two = target.step(model, images[order], Given(target.patch_size, other))
    mask = other.mask
    return close(two.tokens, one.tokens[order]) and close(two.error * mask, one.error[order] * mask)


def images_alone(target: Target) -> bool:
    """Another first image changes its own errors, and no other image's."""
    model, images = model_of(target), images_of(target)
    _, patch_mask = shuffled(target, RATIO)
    other = images.clone()
    other[0] = other[0].flip(-1) + 1
    one, two = (
        target.step(model, x, Given(target.patch_size, patch_mask)).error * patch_mask.mask
        for x in (images, other)
    )
    return close(two[1:], one[1:]) and not close(two[0], one[0])


def stock_fails(target: Target, model: nn.Module, images: Tensor) -> bool:
    """Whether the codebase's own random masking does not run."""
    noise, _ = shuffled(target, STOCK_RATIO)
    try:
        target.stock_step(model, images, noise)
    except RuntimeError:
        return True
    return False


def in_low_precision(
    target: Target, model: nn.Module, images: Tensor, autocast: bool, **options: float
) -> bool:
    masking = learned(target, **options).eval()
    expected = masking(images)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        step = target.step(model, images, masking)
        tokens = target.all_tokens(model, images)
    got = gradients(step.loss, masking)
    return (
        torch.equal(step.patch_mask.mask, expected.mask)
        and close(step.tokens, visible(target, tokens, step.patch_mask), 0.02)
        and bool(torch.isfinite(step.loss) & torch.isfinite(got).all() & got.any())
        and got.dtype == torch.float32
    )


@also_with_some_left_out
def bfloat16(target: Target, **options: float) -> bool | None:
    """A model in bfloat16: float32 masks to the bit, finite loss and masking gradient. `-` where
    the codebase's own model does not run in it."""
    images = images_of(target).bfloat16()
    if not target.bfloat16:
        return None if stock_fails(target, model_of(target).bfloat16(), images) else False
    return in_low_precision(target, model_of(target).bfloat16(), images, False, **options)


@also_with_some_left_out
def autocast(target: Target, **options: float) -> bool | None:
    """The same under torch.autocast. `-` where the codebase's own model does not run under it."""
    if not target.autocast:
        with torch.autocast("cpu", torch.bfloat16):
            return None if stock_fails(target, model_of(target), images_of(target)) else False
    return in_low_precision(target, model_of(target), images_of(target), True, **options)


@also_with_some_left_out
def model_untouched(target: Target, **options: float) -> bool:
    """After a step the model has its weights, attributes, submodules and hooks, and no others."""
    model, images = model_of(target), images_of(target)
    target.all_tokens(model, images)
    before = looked_at(model, target.keeps)
    target.step(model, images, learned(target, **options)).loss.backward()
    after = looked_at(model, target.keeps)
    if before.keys() != after.keys():
        return False
    return all(unchanged(before[key], after[key]) for key in before)


def wrong_use(target: Target) -> bool:
    """A strategy of other patches, and images that do not split into patches, are refused."""
    model, images = model_of(target), images_of(target)
    sides = patch_sides(target.own_patch or target.patch_size)
    finer = learned(target, patch_size=tuple(side // 2 for side in sides))
    cut = images[:, :, : -(patch_sides(target.patch_size)[0] // 2)]
    return refused("patch_size", lambda: target.step(model, images, finer)) and refused(
        "patch", lambda: target.step(model, cut, learned(target))
    )


def free_counts(target: Target) -> bool:
    """Images that keep different numbers: each comes out as it would alone. Else refused."""
    model, images = model_of(target), images_of(target)
    noise, _ = shuffled(target, RATIO)
    length = noise.shape[1]
    masked = torch.tensor([1, length // 3, length - 1])
    mask = noise.argsort(1).argsort(1) < masked[:, None]
    ragged = Given(target.patch_size, PatchMask.from_mask(mask, grid_of(target)))
    if not target.free_counts:
        hint = r"threshold=dict\(type='quantile'\)"
        return refused(hint, lambda: target.step(model, images, ragged))
    step = target.step(model, images, ragged)
    for row in range(BATCH):
        one = slice(row, row + 1)
        alone = Given(target.patch_size, PatchMask.from_mask(mask[one], grid_of(target)))
        single = target.step(model, images[one], alone)
        tokens = step.tokens[one, : single.tokens.shape[1]]
        error = (step.error[one] * mask[one], single.error * mask[one])
        if not (close(tokens, single.tokens) and close(*error)):
            return False
    return True


def gate(target: Target) -> bool:
    """gate=True: the same loss, and a reversed gradient through the tokens. Else refused."""
    model, images = model_of(target), images_of(target)
    options = dict(gate=True, loss=dict(lambda_adv=0.0))
    if not target.gate:
        return refused("gate", lambda: target.step(model, images, learned(target, **options)))
    got, losses = [], []
    for strength in (1.0, -1.0):
        masking = learned(target, strength=strength, **options).eval()
        losses.append(target.step(model, images, masking).loss)
        got.append(gradients(losses[-1], masking))
    plain = target.step(model, images, learned(target, loss=dict(lambda_adv=0.0)).eval()).loss
    return (
        bool(got[0].any()) and close(got[0], -got[1]) and all(torch.equal(x, plain) for x in losses)
    )


def copies_and_eval(target: Target) -> bool:
    """A deep copy after a step gives the same step; in eval() it is still masked, and repeats."""
    model, images = model_of(target), images_of(target)
    masking = learned(target)
    held = target.step(model, images, masking)
    pair = copy.deepcopy((model, masking))
    held.loss.backward()
    model.eval(), masking.eval()
    one, two = target.step(model, images, masking), target.step(model, images, masking)
    other = target.step(pair[0].eval(), images, pair[1].eval())
    tokens = visible(target, target.all_tokens(model, images), one.patch_mask)
    return close(one.tokens, tokens, 1e-6) and all(
        torch.equal(x.error, one.error) and torch.equal(x.tokens, one.tokens) for x in (two, other)
    )


def predicts_all(target: Target) -> bool:
    """A prediction_ratio equal to mask_ratio changes no loss, no error and no gradient, bit for
    bit."""
    found = []
    for options in ({}, dict(prediction_ratio=RATIO)):
        model, masking = model_of(target), learned(target, **options)
        torch.manual_seed(4)
        step = target.step(model, images_of(target), masking)
        step.loss.backward()
        weights = [*model.parameters(), *masking.parameters()]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        found.append([step.loss, step.error, step.decoded, *gradients])
    return len(found[0]) == len(found[1]) and all(map(torch.equal, *found))


def left_out(target: Target) -> bool:
    """The decoder gets the prefix and the visible and predicted patches, or mask tokens in the
    place of all others; the pixels of those that are left out change no loss and no predicted
    error, bit for bit. Else refused."""
    model, images = model_of(target), images_of(target)
    _, whole = shuffled(target, RATIO)
    some = some_left_out(whole)

    def step(images: Tensor, patch_mask: PatchMask) -> Step:
        return target.step(model, images, Given(target.patch_size, patch_mask))

    if not target.leaves_out:
        return refused("left-out patches.* without prediction_ratio", lambda: step(images, some))
    expected = step(images, whole).decoded
    if not target.decodes_all:
        prefix, patches = expected[:, : target.prefix], expected[:, target.prefix :]
        if target.decodes_in_order:
            patches = patches.take_along_dim(whole.ids_shuffle[:, :, None], 1)
        expected = torch.cat([prefix, patches[:, : whole.num_patches - some.num_left_out]], 1)
    hidden = spread_to_pixels(some.mask - some.predicted, some.grid, *target.image_size)
    one, two = (step(x, some) for x in (images, images + hidden * images.square()))
    return (
        torch.equal(one.decoded, expected)
        and torch.equal(two.error * some.predicted, one.error * some.predicted)
        and torch.equal(two.reconstruction, one.reconstruction)
        and torch.equal(two.loss, one.loss)
    )


LAWS: dict[str, Callable[[Target], bool | None]] = {
    "exactly ids_keep": exactly_ids_keep,
    "prefix": prefix_survives,
    "random = stock": random_is_stock,
    "random adds 0": random_adds_nothing,
    "error exact": error_exact,
    "gradient up": gradient_up,
    "order free": order_is_free,
    "batch order": batch_order,
    "images alone": images_alone,
    "bfloat16": bfloat16,
    "autocast": autocast,
    "untouched": model_untouched,
    "wrong use": wrong_use,
    "free counts": free_counts,
    "gate": gate,
    "copies, eval": copies_and_eval,
    "predict all": predicts_all,
    "left out": left_out,
}
