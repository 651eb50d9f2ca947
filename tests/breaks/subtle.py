"""Mutants made by hand: for a line of the core, what would be plausible and wrong there.

A mechanical tool flips signs and drops arguments. These are the mistakes that a person makes: a
mean over the wrong thing, a polarity, a stop-gradient too many, a rule that holds for a fixed count
only. ``test`` names the files that have to notice; docs/mutants.md has the figure.
"""

from __future__ import annotations

from tests.breaks.breaks import Break

CORE = "amn_masking/"
THRESHOLDS = "thresholds laws"
ESTIMATORS = "estimators laws"
STRATEGIES = "strategies laws"

SUBTLE = (
    # --- counts
    Break(
        "visible patches are rounded and not cut off",
        CORE + "counts.py",
        "num_visible = int(length * (1 - mask_ratio))",
        "num_visible = round(length * (1 - mask_ratio))",
        "test_counts.py thresholds laws",
    ),
    Break(
        "masked patches are counted instead of visible ones: L - int(L * r)",
        CORE + "counts.py",
        "num_visible = int(length * (1 - mask_ratio))",
        "num_visible = length - int(length * mask_ratio)",
        "test_counts.py thresholds laws",
    ),
    Break(
        "the range's lower bound is rounded down",
        CORE + "counts.py",
        "math.ceil(low * length - 1e-9)",
        "math.floor(low * length + 1e-9)",
        "test_counts.py thresholds",
    ),
    Break(
        "a range may mask every patch",
        CORE + "counts.py",
        "most = min(length - 1,",
        "most = min(length,",
        "test_counts.py thresholds",
    ),
    # --- the mask
    Break(
        "from_mask takes 1 for visible",
        CORE + "mask.py",
        "return cls.in_order(hard.bool(), num_visible, tuple(grid), visible_counts)",
        "return cls.in_order(~hard.bool(), num_visible, tuple(grid), visible_counts)",
        "test_mask.py",
    ),
    Break(
        "padding is what a row keeps",
        CORE + "mask.py",
        "positions[None, :] >= self.visible_counts[:, None]",
        "positions[None, :] < self.visible_counts[:, None]",
        "test_mask.py laws",
    ),
    Break(
        "padding tokens keep what was gathered for them",
        CORE + "tokens.py",
        "        visible = visible.masked_fill(padding[:, :, None], 0)\n",
        "        pass\n",
        "test_mask.py laws",
    ),
    Break(
        "scatter leaves encoded padding where mask tokens belong",
        CORE + "tokens.py",
        "        visible = torch.where(padding[:, :, None], filler, visible)\n",
        "        pass\n",
        "test_mask.py laws",
    ),
    Break(
        "a class token left on is taken for a patch",
        CORE + "checks.py",
        "tokens.shape[:2] == (patch_mask.mask.shape[0], count)",
        "tokens.shape[0] == patch_mask.mask.shape[0] and tokens.shape[1] >= count",
        "test_mask.py",
    ),
    Break(
        "the gate multiplies by the surrogate and not by 1 less it",
        CORE + "tokens.py",
        "shown = 1 - patch_mask.learned.surrogate.gather(1, ids)",
        "shown = 1 + patch_mask.learned.surrogate.gather(1, ids)",
        "test_mask.py strategies",
    ),
    Break(
        "a transposed grid passes for the right one",
        CORE + "checks.py",
        "got = (patch_mask.mask.shape[0], *patch_mask.grid)",
        "got = expected if sorted(patch_mask.grid) == sorted(expected[1:]) else None",
        "test_mask.py",
    ),
    Break(
        "from_pixels lets patches pass that are masked in part",
        CORE + "mask.py",
        "if not bool(((share == 0) | (share == 1)).all()):",
        "share = share.round()\n        if False:",
        "test_mask.py",
    ),
    # --- what was learned
    Break(
        "the objective is made of the gradient-carrying error",
        CORE + "learned.py",
        "error = error.detach().to(self.surrogate.dtype)",
        "error = error.to(self.surrogate.dtype)",
        "test_learned.py",
    ),
    Break(
        "a shuffled mask takes its own image's reward scale along",
        CORE + "learned.py",
        "            threshold=change(self.threshold),\n",
        "            threshold=change(self.threshold),\n"
        "            reward_scale=None if self.reward_scale is None else change(self.reward_scale),\n",
        "test_learned.py",
    ),
    Break(
        "the regulariser is in the objective's value",
        CORE + "learned.py",
        "(self.regulariser - self.regulariser.detach()).mean()",
        "self.regulariser.mean()",
        "test_learned.py",
    ),
    # --- losses
    Break(
        "A is weighted over the batch and not over each image",
        CORE + "losses.py",
        "((weight * error).sum(1) / weight.sum(1).clamp_min(1e-12)).mean()",
        "(weight * error).sum() / weight.sum().clamp_min(1e-12)",
        "test_losses.py",
    ),
    Break(
        "A trains the network through its weights",
        CORE + "losses.py",
        "weight = mask * learned.relative_scores",
        "weight = mask * learned.logits.sigmoid()",
        "test_losses.py strategies",
    ),
    Break(
        "A is weighted by the patch scores and not by the scores of the mask",
        CORE + "losses.py",
        "weight = mask * learned.relative_scores",
        "weight = mask * learned.patch_scores",
        "test_losses.py strategies",
    ),
    Break(
        "R divides by the number of all patches",
        CORE + "losses.py",
        "return (hidden * mask).sum() / mask.sum().clamp_min(1) / self.channel",
        "return (hidden * mask).mean() / self.channel",
        "test_losses.py",
    ),
    # --- patches
    Break(
        "an image's mean error is the batch's",
        CORE + "patches.py",
        "return total / weights.where(weights > 0, 1)",
        "return (total.sum() / weight.sum()).expand(len(weight), 1)",
        "test_patches.py estimators",
    ),
    Break(
        "the mean over the masked patches is a mean of the images' means",
        CORE + "patches.py",
        "return error.where(mask > 0, 0.0).sum() / mask.sum().clamp_min(1)",
        "return image_means(error, mask).mean()",
        "test_patches.py test_meters.py",
    ),
    Break(
        "norm_pix uses the biased variance",
        CORE + "patches.py",
        "patches.var(-1, keepdim=True) + 1e-6",
        "patches.var(-1, keepdim=True, correction=0) + 1e-6",
        "test_patches.py",
    ),
    Break(
        "patches are channels-first within",
        CORE + "patches.py",
        "order = (0, *places, *(axis + 1 for axis in places), 1)",
        "order = (0, *places, 1, *(axis + 1 for axis in places))",
        "test_patches.py",
    ),
    # --- network
    Break(
        "the logits are standardised over the batch",
        CORE + "network.py",
        "return F.layer_norm(logits, logits.shape[1:], eps=eps**2) / temperature",
        "return F.layer_norm(logits, logits.shape, eps=eps**2) / temperature",
        "test_network.py strategies",
    ),
    Break(
        "a higher temperature sharpens",
        CORE + "network.py",
        "return F.layer_norm(logits, logits.shape[1:], eps=eps**2) / temperature",
        "return F.layer_norm(logits, logits.shape[1:], eps=eps**2) * temperature",
        "test_network.py strategies",
    ),
    Break(
        "patches without data take part in the mean of the logits",
        CORE + "network.py",
        "centred = logits - image_means(logits, valid)",
        "centred = logits - logits.mean(1, keepdim=True)",
        "test_network.py laws/test_valid_gradient.py",
    ),
    # --- thresholds
    Break(
        "random_share is cut off and not rounded",
        CORE + "thresholds/base.py",
        "return whole + (chance < exact - whole)",
        "return whole + (chance < 0)",
        THRESHOLDS,
    ),
    Break(
        "random_share draws patches without data",
        CORE + "thresholds/base.py",
        "                noise = noise.masked_fill(~self.valid, 2.0)\n",
        "                pass\n",
        "laws/test_valid.py thresholds",
    ),
    Break(
        "patches without data count in the mean score",
        CORE + "thresholds/base.py",
        "return image_means(self.scores, self.valid)",
        "return image_means(self.scores, None)",
        "laws/test_valid.py laws/test_valid_gradient.py",
    ),
    Break(
        "the threshold of a cut count is the one that was wanted",
        CORE + "thresholds/base.py",
        "selection.tau = torch.where((wanted == num_masked)[:, None], tau_logit, selection.tau)",
        "selection.tau = tau_logit",
        THRESHOLDS,
    ),
    Break(
        "the mean score has no gradient in tau",
        CORE + "thresholds/mean.py",
        "self.scale * candidates.mean_score()",
        "self.scale * candidates.mean_score().detach()",
        "thresholds estimators laws",
    ),
    Break(
        "equal priorities stay in the grid's order",
        CORE + "thresholds/base.py",
        "return (ascending << 24) + (ties * (1 << 24)).long()",
        "return (ascending << 24) + torch.arange(self.length, device=ties.device)",
        "thresholds strategies laws",
    ),
    Break(
        "tracking moves in eval() too",
        CORE + "thresholds/tracking.py",
        "if not self.training:",
        "if False:",
        "thresholds",
    ),
    Break(
        "difficulty: the errors are each rank's own",
        CORE + "thresholds/difficulty.py",
        "mean_over_ranks(torch.stack(sums).reshape(2, 2))",
        "torch.stack(sums).reshape(2, 2)",
        "thresholds",
    ),
    Break(
        "difficulty: a masked patch that was drawn at random counts as chosen by score",
        CORE + "thresholds/difficulty.py",
        "by_score = chosen.mask.bool() & ~random",
        "by_score = chosen.mask.bool()",
        "thresholds",
    ),
    # --- estimators
    Break(
        "the objective is normalised by the batch's mean count",
        CORE + "estimators/base.py",
        "return ((advantage * change).sum(1) / masked).mean()",
        "return (advantage * change).sum(1).mean() / learned.chosen.mask.sum(1).mean()",
        ESTIMATORS,
    ),
    Break(
        "the free counts' noise is Gumbel's and not logistic",
        CORE + "estimators/base.py",
        "            noise = noise - gumbel(logits, generator)\n",
        "            pass\n",
        ESTIMATORS,
    ),
    Break(
        "the leave-one-out baseline holds the image's own reward",
        CORE + "estimators/score_function.py",
        "return (values.sum(0, keepdim=True) - values) / max(len(values) - 1, 1)",
        "return values.mean(0, keepdim=True).expand_as(values)",
        ESTIMATORS,
    ),
    Break(
        "patches drawn at random count as draws of the network",
        CORE + "estimators/score_function.py",
        "        drawn = drawn & ~selection.drawn_at_random.gather(1, ids)\n",
        "        pass\n",
        ESTIMATORS,
    ),
    Break(
        "patches without data are left to be drawn",
        CORE + "estimators/score_function.py",
        "        logits = logits.masked_fill(~patch_mask.valid, NEVER)\n",
        "        pass\n",
        "laws/test_valid.py laws/test_valid_gradient.py estimators",
    ),
    Break(
        "ranking learns from patches that were not masked",
        CORE + "estimators/ranking.py",
        "harder = harder & mask.bool()[:, None, :]",
        "harder = harder",
        ESTIMATORS,
    ),
    # --- strategies
    Break(
        "eval() draws its share of random patches",
        CORE + "strategies/adversarial.py",
        "self.random_share if self.training else 0.0,",
        "self.random_share,",
        "laws/test_eval.py strategies",
    ),
    Break(
        "the strength scales the value and not the gradient",
        CORE + "strategies/adversarial.py",
        "return x.detach() - strength * (x - x.detach())",
        "return x.detach() + strength * (x - x.detach())",
        "strategies estimators",
    ),
    Break(
        "hard patches: the share of random ones grows",
        CORE + "strategies/hard_patches.py",
        'dict(type="linear", start=1.0, end=0.5)',
        'dict(type="linear", start=0.5, end=1.0)',
        "strategies",
    ),
    Break(
        "a shuffle may leave an image its own mask",
        CORE + "strategies/wrapped.py",
        "order.roll(1)",
        "order.flip(0)",
        "strategies",
    ),
    Break(
        "attention's hints are drawn from all patches",
        CORE + "strategies/attention.py",
        "        noise = noise.masked_fill(chosen.patch_mask.mask == 0, 2.0)\n",
        "",
        "strategies",
    ),
    Break(
        "random masking keeps the patches of largest noise",
        CORE + "strategies/random.py",
        "            noise.argsort(1),\n",
        "            noise.argsort(1, descending=True),\n",
        "strategies adapters/mmpretrain/test_mixin.py",
    ),
    # --- seen, predicted, left out
    Break(
        "a predicted patch may be left out too",
        CORE + "prediction.py",
        "    taken = predicted\n    if chosen.valid",
        "    taken = predicted & False\n    if chosen.valid",
        "laws/test_prediction_ratio.py",
    ),
    Break(
        "what is left out are the first patches of the grid",
        CORE + "prediction.py",
        "left_out = least(noise.masked_fill",
        "left_out = least((0 * noise + torch.arange(noise.shape[1]) / 999).masked_fill",
        "laws/test_prediction_ratio.py",
    ),
    Break(
        "patches without data are left out",
        CORE + "prediction.py",
        "taken = predicted | ~chosen.valid",
        "taken = predicted",
        "laws/test_prediction_ratio.py",
    ),
    Break(
        "the network chooses what is hidden and not what is predicted",
        CORE + "strategies/adversarial.py",
        "self.chosen_ratio,\n",
        "self.mask_ratio,\n",
        "laws/test_prediction_ratio.py",
    ),
    Break(
        "a share that leaves nothing out draws random numbers all the same",
        CORE + "prediction.py",
        "    if num_masked == num_predicted:\n"
        "        return replace(chosen, num_predicted=num_predicted)\n",
        "",
        "laws/test_prediction_ratio.py",
    ),
    Break(
        "reconstruct='all' counts what was left out",
        CORE + "losses.py",
        "reconstruction = masked_mean(per_patch, mask.counted)",
        "reconstruction = error.mean()",
        "laws/test_prediction_ratio.py",
    ),
    Break(
        "the reward counts what was left out",
        CORE + "losses.py",
        "        mask = patch_mask.predicted\n",
        "        mask = patch_mask.mask\n",
        "laws/test_prediction_ratio.py",
    ),
    Break(
        "the decoder's output goes back one set too far",
        CORE + "tokens.py",
        "F.pad(decoded, (0, 0, 0, patch_mask.num_left_out))",
        "F.pad(decoded, (0, 0, patch_mask.num_left_out, 0))",
        "test_mask.py",
    ),
    # --- schedules, meters, noise, rewards, the watch
    Break(
        "a schedule begins at once",
        CORE + "schedules.py",
        "done = (now - self.begin) / (until - self.begin)",
        "done = now / until",
        "test_schedules.py",
    ),
    Break(
        "a number that is set in mid-run begins at its schedule's start",
        CORE + "schedules.py",
        "setattr(strategy, self.slot, schedule(*strategy.progress))",
        "setattr(strategy, self.slot, schedule.start)",
        "test_schedules.py laws/test_one_owner.py",
    ),
    Break(
        "the gain is of the images' means",
        CORE + "meters.py",
        "masked_mean(error_under(masks), masks.predicted)",
        "(error_under(masks) * masks.predicted).sum(1).div(masks.predicted.sum(1)).mean()",
        "test_meters.py",
    ),
    Break(
        "frozen masks have the entropy of their ratio",
        CORE + "meters.py",
        "coin_entropy(frequency).mean() / coin_entropy(frequency.mean())",
        "coin_entropy(frequency.mean()) / 0.6931471805599453",
        "test_meters.py",
    ),
    Break(
        "Gumbel noise of the wrong sign",
        CORE + "noise.py",
        "return -torch.log((-torch.log(chance)).clamp_min(tiny))",
        "return torch.log((-torch.log(chance)).clamp_min(tiny))",
        ESTIMATORS,
    ),
    Break(
        "the variance of a patch is over its channels too",
        CORE + "rewards.py",
        "deviation = pixels - pixels.mean(inside, keepdim=True)",
        "deviation = pixels - pixels.mean([1, *inside], keepdim=True)",
        "test_rewards.py",
    ),
    Break(
        "a tube's error is the sum over its slots",
        CORE + "learned.py",
        "return self.one_slot.objective(slots.mean(1))",
        "return self.one_slot.objective(slots.sum(1))",
        "test_tubes.py",
    ),
    Break(
        "tubes lie along the columns and not along time",
        CORE + "tubes.py",
        "patch_mask.mask.bool().repeat(1, slots)",
        "patch_mask.mask.bool().repeat_interleave(slots, 1)",
        "test_tubes.py",
    ),
    Break(
        "a network that is not trained goes unnoticed",
        CORE + "watch.py",
        "return weight._version == version and torch.equal(weight.detach(), before.to(weight))",
        "return False",
        "test_watch.py strategies",
    ),
)  # fmt: skip
