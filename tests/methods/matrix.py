"""The method matrix: every masked-image-modelling method of mmpretrain with a learned mask.

    python -m tests.methods.matrix

Each method runs its stock recipe on real photographs, smaller (small_methods.py). The rows of the
OpenMMLab stack that is installed are written anew into docs/results/methods.csv, those of the
other stack stay; docs/results/methods.md is the table of both. ``make methods`` runs both stacks.

For each method:

- trains: one epoch in mmengine's Runner; finite losses, and every masking weight moved.
- mask exact: the encoder's features have a gradient to the image that is exactly 0 in the patches
  that the strategy masks, and nowhere else.
- error exact: the errors that the adversary gets are those of the head's own loss module on one
  patch after the other, and their mean is the method's loss where that is over masked patches.
- gradient up: what the masking network gets in a step is minus lambda times the gradient of
  sum(advantage * soft mask), written anew: descending along it masks harder patches.
- None identical: without masking=, loss and all gradients are stock's, bit for bit.

And measured, where the answer is the method's and not this package's to give:

- hidden unseen: other pixels in the masked patches leave the prediction as it is, bit for bit, on
  every path from pixels to prediction. (The path through iTPN's first two stages, with CLIP's
  features, is stock's own.)
- random identical: with RandomMasking, loss and all gradients are stock's, bit for bit, given the
  same seed: so it is where stock masks uniformly at random itself, and not where it draws blocks or
  looks at the image.
- left out: what a prediction_ratio spares. 'decoder saved': the decoder runs without the patches
  that are left out, and they are not in the loss; 'loss only': they are not in the loss; 'refused':
  a prediction_ratio is. Where it is taken: with prediction_ratio = mask_ratio, loss and gradients
  are those without one, bit for bit; a predicted patch's error is what the stock forward pass gives
  if its decoder's attention does not look at what is left out; 'error exact' holds of these errors;
  and other pixels in what is left out change no prediction and, where a patch's target is made of
  its own pixels alone, no loss, bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner, set_random_seed
from mmpretrain.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from amn_masking.adapters.overrides import overridden
from amn_masking.mask import PatchMask
from amn_masking.network import pool_scores, standardise_logits, to_logits
from benchmarks.markdown import markdown_table
from demo.photos import write
from tests.contract.laws import soft_mask
from tests.methods.small_methods import SMALL, small_config

LEARNED = dict(type="AdversarialMasking", mask_ratio=0.5)
PART = LEARNED | dict(prediction_ratio=0.25)
RESULTS = Path(__file__).resolve().parents[2] / "docs/results"
# A patch's target is of its own pixels alone. (CLIP's stand-in here embeds one patch at a time.)
OWN_TARGETS = ("MAE", "MAE (HiViT)", "MFF", "EVA", "SimMIM", "iTPN (pixel)", "SparK")
SUPPORT = ("predicts", "counts", "gradient path", "patch", "ratio")


def build(label: str, photos: Path, **options: Any) -> tuple[Any, Any, list]:
    """The model in training mode, and a batch of photographs as it gets them."""
    cfg = small_config(label, photos, **options)
    set_random_seed(0)
    model = MODELS.build(cfg.model)
    set_random_seed(1)
    model.init_weights()
    cfg.train_dataloader.sampler.shuffle = False
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    set_random_seed(2)
    data = model.data_preprocessor(next(iter(loader)), training=True)
    return model.train(), data["inputs"], data["data_samples"]


def step(model: Any, inputs: Any, samples: list) -> dict[str, Tensor]:
    """The losses of one training step; the gradients stay in the model."""
    set_random_seed(3)
    losses = model.loss(inputs, samples)
    model.parse_losses(losses)[0].backward()
    return losses


class Watched:
    """One call of a model's loss, seen from inside.

    Attributes:
        losses: what it returned.
        mask: the mask that the strategy made.
        output: what the backbone gave for the masked images.
        calls: the arguments of the head's loss module.
    """

    def __init__(self, model: Any, inputs: Any, samples: list) -> None:
        masks: list[PatchMask] = []
        outputs: list[Any] = []
        self.calls: list[tuple] = []
        hooks = [
            model.masking.register_forward_hook(lambda m, args, out: masks.append(out)),
            model.backbone.register_forward_hook(lambda m, args, out: outputs.append(out)),
            model.loss_module.register_forward_hook(lambda m, args, o: self.calls.append(args)),
        ]
        try:
            self.losses = model.loss(inputs, samples)
        finally:
            for hook in hooks:
                hook.remove()
        (self.mask,) = masks
        self.output = outputs[0]


def mask_exact(label: str, photos: Path, masking: dict = LEARNED) -> bool:
    model, inputs, samples = build(label, photos, masking=masking)
    images = inputs if isinstance(inputs, Tensor) else inputs[0]
    images.requires_grad_()
    seen = Watched(model, inputs, samples)
    features = seen.output
    if label == "iTPN (pixel)":
        features = features[0][-1]
    elif label == "iTPN (clip)":
        features = features[-1]  # the other levels are made before the mask
    elif not isinstance(features, Tensor):
        features = features[0]
    rows = len(seen.mask.mask)  # MixMIM has one mask, made for its first image
    # Weighted at random: the sum of normalised features has no gradient at all.
    total = (features[:rows] * torch.randn_like(features[:rows])).sum()
    (gradient,) = torch.autograd.grad(total, images)
    h, w = seen.mask.grid
    patch = (images.shape[2] // h, images.shape[3] // w)
    strongest = F.max_pool2d(gradient[:rows].abs().amax(1, keepdim=True), patch)
    return torch.equal((strongest.flatten(1) == 0).float(), seen.mask.mask)


def slow_patch_error(model: Any, calls: list[tuple], patch_mask: PatchMask) -> Tensor:
    """The head's own loss module on one predicted patch after the other; 0 at the others."""
    error = torch.zeros_like(patch_mask.mask)
    (h, w), loss = patch_mask.grid, model.loss_module
    for pred, target, *rest in calls:
        row = 0
        for image, predicted in enumerate(patch_mask.predicted):
            for rank, patch in enumerate(predicted.nonzero().flatten().tolist()):
                if len(rest) == 2:  # CAE: also the latents, image by image
                    here = slice(row, row + 1), (image, slice(rank, rank + 1))
                    value = sum(loss(pred[here[0]], target[here[0]], *(x[here[1]] for x in rest)))
                elif pred.dim() == 4:
                    height, width = pred.shape[2] // h, pred.shape[3] // w
                    top, left = patch // w * height, patch % w * width
                    here = (image, slice(None), slice(top, top + height), slice(left, left + width))
                    value = loss(pred[here][None], target[here][None])
                elif pred.dim() == 3:
                    token = patch - patch_mask.num_patches  # a class token may come first
                    value = loss(pred[image, token][None, None], target[image, token][None, None])
                else:
                    value = loss(pred[row : row + 1], target[row : row + 1])
                error[image, patch] += value
                row += 1
    return error


@torch.no_grad()
def error_exact(label: str, photos: Path, masking: dict = LEARNED) -> bool:
    model, inputs, samples = build(label, photos, masking=masking)
    return errors_exact(label, model, inputs, samples)


def errors_exact(label: str, model: Any, inputs: Any, samples: list) -> bool:
    seen = Watched(model, inputs, samples)
    mask = seen.mask.predicted
    error = model.patch_error(seen.mask, seen.calls) * mask
    if not torch.allclose(error, slow_patch_error(model, seen.calls, seen.mask), rtol=1e-4):
        return False
    if label in ("MILAN", "MixMIM"):  # their own loss is over visible patches too
        return True
    return torch.allclose(error.sum() / mask.sum(), seen.losses["reconstruction"], rtol=1e-5)


def gradient_up(label: str, photos: Path, masking: dict = LEARNED) -> bool:
    """The network's gradient is -lambda times that of straight_through's objective,
    sum(advantage * soft mask), written anew."""
    masking = {**masking, "estimator": dict(type="straight_through")}
    model, inputs, samples = build(label, photos, masking=masking)
    seen = Watched(model, inputs, samples)
    network = list(model.masking.network.parameters())
    model.parse_losses(seen.losses)[0].backward()
    got = torch.cat([p.grad.flatten() for p in network])

    mask = seen.mask.mask
    images = (inputs if isinstance(inputs, Tensor) else inputs[0])[: len(mask)]
    scores = pool_scores(model.masking.network(images), seen.mask.grid)
    logits = standardise_logits(to_logits(scores), 1.0)
    soft = soft_mask(logits, torch.logit(seen.mask.learned.threshold)[:, None])
    error = model.patch_error(seen.mask, seen.calls).detach()
    masked = mask.sum(1, keepdim=True)
    advantage = mask * (error - (error * mask).sum(1, keepdim=True) / masked) / masked
    ascent = torch.autograd.grad((advantage * soft).sum(1).mean(), network)
    expected = -model.masking.loss.lambda_adv * torch.cat([g.flatten() for g in ascent])
    return bool(got.any()) and torch.allclose(
        got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


@torch.no_grad()
def hidden_unseen(label: str, photos: Path, masking: dict = LEARNED) -> bool:
    model, inputs, samples = build(label, photos, masking=masking)
    images = inputs if isinstance(inputs, Tensor) else inputs[0]
    patch_mask = model.make_mask(images)
    hidden = patch_mask.pixel_mask(*images.shape[2:])
    if label == "MixMIM":  # the masked patches of the others are this image's visible ones
        hidden = torch.cat([hidden, torch.zeros_like(images[1:, :1])])

    def prediction(seen: Tensor) -> list[Tensor]:
        set_random_seed(4)
        batch = seen if isinstance(inputs, Tensor) else [seen, *inputs[1:]]
        _, calls = model.masked_loss(patch_mask, batch, samples)
        if label == "MixMIM":
            return [calls[0][0][0][patch_mask.mask[0].bool()]]
        # CAE also predicts the latents of the masked patches.
        return [part for call in calls for part in (call[0], *call[2:3] * (label == "CAE"))]

    before = prediction(images)
    after = prediction(torch.where(hidden.bool(), torch.randn_like(images), images))
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def left_out(label: str, photos: Path) -> str:
    """A cell of the column 'left out'; 'NO' where one of its laws is broken."""
    try:
        model, inputs, samples = build(label, photos, masking=PART)
    except ValueError as error:
        if "prediction_ratio" not in str(error):
            raise
        return "refused"
    if not identical_where_all_are_predicted(label, photos, model, inputs, samples):
        return "NO"
    with torch.no_grad():
        spared = decoder_spared(model, inputs, samples)
        good = errors_exact(label, model, inputs, samples) and left_out_unseen(
            label, model, inputs, samples
        )
    return ("decoder saved" if spared else "loss only") if good else "NO"


def identical_where_all_are_predicted(
    label: str, photos: Path, model: Any, inputs: Any, samples: list
) -> bool:
    model.masking.prediction_ratio = model.masking.mask_ratio
    stock = build(label, photos, masking=LEARNED)[0]
    losses, expected = (step(each, inputs, samples) for each in (model, stock))
    model.masking.prediction_ratio = PART["prediction_ratio"]
    gradients = (dict(each.named_parameters()) for each in (model, stock))
    return all(torch.equal(losses[name], value) for name, value in expected.items()) and all(
        one.grad is other.grad or torch.equal(one.grad, other.grad)
        for one, other in zip(*(each.values() for each in gradients), strict=True)
    )


def decoder_spared(model: Any, inputs: Any, samples: list) -> bool:
    """Whether the decoder runs without what is left out.

    Raises:
        AssertionError: the predicted patches' errors are not those of a stock forward pass in which
            the decoder's attention does not look at the others.
    """
    part = model.make_mask(inputs if isinstance(inputs, Tensor) else inputs[0])
    whole = replace(part, num_predicted=None)
    blocks = getattr(model.neck, "decoder_blocks", ())
    tokens, errors = [], []
    for mask in (whole, part):
        set_random_seed(4)
        with attending_to(blocks, part) if mask is whole else nullcontext(), ExitStack() as stack:
            for block in blocks:
                count = block.attn.register_forward_pre_hook(
                    lambda module, args: tokens.append(args[0].shape[1])
                )
                stack.callback(count.remove)
            errors.append(model.error_under(mask, inputs, samples))
    predicted = part.predicted > 0
    torch.testing.assert_close(*(error[predicted] for error in errors), rtol=1e-4, atol=1e-6)
    assert not errors[1][part.mask > part.predicted].any()
    depth = len(blocks)
    spared = {before - after for before, after in zip(tokens[:depth], tokens[depth:], strict=True)}
    assert spared in (set(), {part.num_left_out})
    return bool(spared)


@contextmanager
def attending_to(blocks: Any, part: PatchMask) -> Iterator[None]:
    """For the duration, no attention of these blocks looks at the patches that are left out."""
    with ExitStack() as stack:
        for block in blocks:
            attend = block.attn.scaled_dot_product_attention

            def looking(
                query: Tensor, key: Tensor, *args: Any, attend=attend, **kwargs: Any
            ) -> Tensor:
                seen = F.pad(part.counted, (key.shape[2] - part.num_patches, 0), value=True)
                return attend(query, key, *args, **kwargs | dict(attn_mask=seen[:, None, None]))

            stack.enter_context(overridden(block.attn, scaled_dot_product_attention=looking))
        yield


def left_out_unseen(label: str, model: Any, inputs: Any, samples: list) -> bool:
    """Whether other pixels in what is left out change no prediction, and no loss."""
    images = inputs if isinstance(inputs, Tensor) else inputs[0]
    part = model.make_mask(images)
    hidden = part.mask > part.predicted
    pixels = replace(part, mask=hidden.float()).pixel_mask(*images.shape[2:])
    changed = torch.where(pixels > 0, torch.randn_like(images), images)
    found = []
    for seen in (images, changed):
        set_random_seed(4)
        batch = seen if isinstance(inputs, Tensor) else [seen, *inputs[1:]]
        losses, calls = model.masked_loss(part, batch, samples)
        found.append([call[0] for call in calls])
        if label in OWN_TARGETS:
            found[-1].append(losses["loss"])
    same = all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    return same or label == "iTPN (clip)"  # whose stock shows what it hides


def none_identical(label: str, photos: Path) -> bool:
    return identical(label, photos, None)


def random_identical(label: str, photos: Path) -> bool:
    return identical(label, photos, dict(type="RandomMasking"))


def identical(label: str, photos: Path, masking: dict | None) -> bool:
    """Whether loss and all gradients are the stock method's, bit for bit."""
    results = []
    for ours in (True, False):
        options = dict(masking=masking) if ours else {}
        model, inputs, samples = build(label, photos, ours=ours, **options)
        set_random_seed(3)
        losses = model.loss(inputs, samples)
        model.parse_losses(losses)[0].backward()
        losses = {name: value for name, value in losses.items() if "loss" in name}
        results.append((losses, {n: p.grad for n, p in model.named_parameters()}))
    for got, expected in zip(*results, strict=True):
        if got.keys() != expected.keys():
            return False
        for name, value in expected.items():
            same = value is got[name] if value is None else torch.equal(got[name], value)
            if not same:
                return False
    return True


def trains(label: str, photos: Path, masking: dict = LEARNED) -> bool:
    cfg = small_config(label, photos, masking=masking)
    with tempfile.TemporaryDirectory() as work_dir:
        cfg.work_dir = work_dir
        cfg.experiment_name = Path(work_dir).name  # mmengine keeps loggers by name
        runner = Runner.from_cfg(cfg)
        network = runner.model.masking.network
        runner.model.init_weights()
        before = [parameter.detach().clone() for parameter in network.parameters()]
        runner.model.init_weights = lambda: None  # the Runner would do it again
        runner.train()
    losses, _ = runner.message_hub.get_scalar("train/loss").data
    moved = all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    return (
        len(losses) == len(runner.train_dataloader)
        and bool(torch.isfinite(torch.tensor(losses)).all())
        and moved
    )


CHECKS = {
    "trains": trains,
    "mask exact": mask_exact,
    "error exact": error_exact,
    "gradient up": gradient_up,
    "None identical": none_identical,
}
MEASURED = {
    "hidden unseen": hidden_unseen,
    "random identical": random_identical,
    "left out": left_out,
}


def support(label: str, photos: Path) -> dict[str, str]:
    """What the code says about a method."""
    model, _, _ = build(label, photos, masking=LEARNED)
    kinds = {"CrossEntropyLoss": "visual tokens", "CAELoss": "visual tokens, features"}
    target = kinds.get(type(model.loss_module).__name__, "features")
    return {
        "predicts": "pixels" if model.predicts_pixels else target,
        "counts": "free" if model.takes_free_counts else "equal",
        # The error of each patch always; with gate=True also through the visible tokens.
        "gradient path": "error, or error and tokens" if model.takes_gate else "error",
        "patch": f"{model.patch_size[0]}",
        "ratio": f"{model.own_mask_ratio():.3g}",
    }


def stack() -> str:
    """``upstream`` or ``forks``, with mmpretrain's version."""
    try:
        return f"upstream {version('mmpretrain')}"
    except PackageNotFoundError:
        return f"forks {version('onedl-mmpretrain')}"


def check(label: str, photos: Path) -> dict[str, str]:
    """A row of the matrix; a check that raises has failed, and says why on stderr."""
    row = {"stack": stack(), "torch": version("torch"), "method": label}
    for name, passes in (CHECKS | MEASURED).items():
        try:
            answer = passes(label, photos)
            row[name] = answer if isinstance(answer, str) else "yes" if answer else "NO"
        except Exception:
            traceback.print_exc()
            row[name] = "NO"
    return row | support(label, photos)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown, a row per method; a check's cell holds one answer per stack."""
    stacks = sorted({row["stack"] for row in rows}, reverse=True)
    lines = [
        "# Methods of mmpretrain",
        "",
        "Made by `make methods`; what each column means is in `tests/methods/matrix.py`.",
        "",
        *(f"- {name}, torch {next(r['torch'] for r in rows if r['stack'] == name)}"
          for name in stacks),
        "",
        f"Checks: {' / '.join(name.split()[0] for name in stacks)}.",
        "",
    ]  # fmt: skip
    answers = []
    for label in SMALL:
        mine = {row["stack"]: row for row in rows if row["method"] == label}
        columns = (*CHECKS, *MEASURED)
        # A dash: not measured on that stack yet.
        checks = [" / ".join(mine.get(s, {}).get(c) or "-" for s in stacks) for c in columns]
        facts = next(iter(mine.values()))
        answers.append([label, *checks, *(facts[k] for k in SUPPORT)])
    head = ["method", *CHECKS, *MEASURED, *SUPPORT]
    return "\n".join([*lines, *markdown_table(head, answers)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", action="append", choices=list(SMALL), help="only these")
    args = parser.parse_args()
    MMLogger.get_instance("methods", log_level="ERROR")
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), train_crops=2, val_crops=1)
        for label in args.method or SMALL:
            row = check(label, Path(folder))
            print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
            rows.append(row)
    if not args.method:
        path = RESULTS / "methods.csv"
        if path.exists():
            with path.open() as file:
                kind = stack().split()[0]
                rows += [r for r in csv.DictReader(file) if r["stack"].split()[0] != kind]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        (RESULTS / "methods.md").write_text(table(rows))
        print(table(rows))
    return int(any(row[name] != "yes" for row in rows for name in CHECKS))


if __name__ == "__main__":
    sys.exit(main())
