"""The price of a masking strategy: step time, memory and FLOPs beside stock random masking.

    python -m benchmarks.overhead                # CPU: ViT-T/S/B/L at 224 and ViT-B at 448
    python -m benchmarks.overhead --models base --batch 256 --device cuda --amp --compile
    python -m benchmarks.overhead --profile tiny # where the learned mask's time goes
    python -m benchmarks.overhead --recipes --models base           # whole recipes, 8 minutes
    python -m benchmarks.overhead --recipes --models large --rounds 0   # FLOPs and memory alone

A step is forward, backward and optimizer of mmpretrain's MAE at its own mask ratio of 0.75, with
``type='MAE'`` as it is, and with ``type='amn_masking.MAE'`` and each strategy. All of a model are
in one process, share the autoencoder's weights and AdamW's state, and take turns, step by step,
because machines are noisy: what counts is the ratio of a step to the stock step of the same round.
Median over the rounds, and the 95 % bootstrap interval of that median. Strategies other than
``EVERY_ROUND`` take part in each third round.

FLOPs are torch's count (FlopCounterMode) of forward and backward. Memory is the peak of one step
above what the weights take: on CUDA the allocator's, on the CPU torch's profiler's.

A recipe is the shipped network with the shares of the patches that are seen and predicted; what is
neither is left out. A strategy above sees as much as stock does; a recipe is compared with stock as
people use it, random masks at 0.75 without a network. All recipes take part in every round. Their
memory on the CPU is what the forward pass saves for the backward pass: it grows with the batch as a
GPU's peak does, where the peak of a step of 8 images is the gradients of the weights.

docs/results/overhead.csv has a row per model, strategy, device and setting; rows of the same key
are replaced. docs/results/overhead.md is the table. Recipes have recipes.csv and recipes.md there.
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import amn_masking.adapters.mmpretrain  # noqa: F401  (registers)
from amn_masking.mask import PatchMask
from benchmarks.markdown import markdown_table
from benchmarks.timing import hardware, ratio_of

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
# Name: architecture, width, image size, images of a batch on the CPU.
SIZES = {
    "tiny": ("deit-tiny", 192, 224, 8),
    "small": ("deit-small", 384, 224, 8),
    "base": ("base", 768, 224, 8),
    "large": ("large", 1024, 224, 4),
    "base448": ("base", 768, 448, 2),
}
STRATEGIES: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "RandomMasking": dict(type="RandomMasking"),
    "BlockMasking": dict(type="BlockMasking"),
    "ColorNoiseMasking": dict(type="ColorNoiseMasking"),
    "HardPatchMasking": dict(type="HardPatchMasking", network=dict(downsample=8)),
    "AttentionMasking": dict(type="AttentionMasking"),
    "AMN, downsample 8": dict(
        type="AdversarialMasking", random_share=0.0, network=dict(downsample=8)
    ),
    "AMN, downsample 4": dict(
        type="AdversarialMasking", random_share=0.0, network=dict(downsample=4)
    ),
    "AMN, downsample 1": dict(
        type="AdversarialMasking", random_share=0.0, network=dict(downsample=1)
    ),
}
SHIPPED = "AMN, downsample 8"  # in configs/mmpretrain/_base_/amn.py
TARGETS = {"flops_ratio": 1.01, "step_ratio": 1.02, "memory_ratio": 1.02}  # of SHIPPED, at most
# Shares of the patches that are seen and that are predicted.
PAIRS = (
    (0.75, 0.25), (0.625, 0.375), (0.25, 0.75),  # all that is not seen is predicted
    (0.25, 0.25), (0.25, 0.125), (0.375, 0.375), (0.5, 0.25),
)  # fmt: skip
RECIPES: dict[str, dict[str, Any] | None] = {"stock": None} | {
    f"seen {seen}, predicted {predicted}": dict(
        type="AdversarialMasking",
        mask_ratio=1 - seen,
        prediction_ratio=predicted,
        network=dict(downsample=8),
    )
    for seen, predicted in PAIRS
}
CHEAP = "seen 0.25, predicted 0.25"
# Of CHEAP, at most.
RECIPE_TARGETS = {"base": {"flops_ratio": 0.75, "step_ratio": 0.80, "memory_ratio": 0.90}}
EVERY_ROUND = ("stock", "RandomMasking", SHIPPED)
PATH_BATCH = 64
KEY = ("model", "strategy", "device", "batch", "amp", "compile")


def build(size: str, masking: dict[str, Any] | None, device: str) -> Any:
    """mmpretrain's MAE of this size, stock where there is no masking."""
    arch, width, image_size, _ = SIZES[size]
    model = dict(
        type="MAE" if masking is None else "amn_masking.MAE",
        backbone=dict(
            type="MAEViT", arch=arch, patch_size=16, img_size=image_size, mask_ratio=0.75
        ),
        neck=dict(type="MAEPretrainDecoder", embed_dim=width, num_patches=(image_size // 16) ** 2),
        head=dict(
            type="MAEPretrainHead",
            norm_pix=True,
            patch_size=16,
            loss=dict(type="PixelReconstructionLoss", criterion="L2"),
        ),
    )
    if masking is not None:
        model["masking"] = masking
    torch.manual_seed(0)
    built = MODELS.build(model)
    built.init_weights()
    return built.to(device).train()


def share(model: Any, stock: Any) -> Any:
    """``model`` with the weights of ``stock`` in the place of its own, where they have the same."""
    for name, weight in list(stock.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, weight)
    return model


def step_of(
    model: Any, images: Tensor, amp: bool, compiled: bool, state: dict[Tensor, Any]
) -> Callable[[], None]:
    """A whole training step.

    Args:
        state: AdamW's, of all that train these weights; filled by the first.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for weight in model.parameters():
        if weight in state:
            optimizer.state[weight] = state[weight]

    def loss() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            return model.parse_losses(model.loss(images, []))[0]

    loss = torch.compile(loss) if compiled else loss

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        state.update(optimizer.state)

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Most memory that a step has at one time, above what is held before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def saved_bytes(model: Any, images: Tensor) -> int:
    """What the forward pass keeps for the backward pass, the weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        losses = model.loss(images, [])  # alive, so that no memory is given out twice
    del losses
    return sum(saved.values())


def flops(model: Any, images: Tensor) -> int:
    """Of forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model.parse_losses(model.loss(images, []))[0].backward()
    model.zero_grad()
    return counter.get_total_flops()


def measure(size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model."""
    batch = args.batch or SIZES[size][3]
    strategies = RECIPES if args.recipes else STRATEGIES
    images = torch.randn(batch, 3, SIZES[size][2], SIZES[size][2], device=args.device)
    stock = build(size, None, args.device)
    state: dict[Tensor, Any] = {}
    counts, memory, steps = {}, {}, {}
    # A CPU's batch is so small that the peak of a step is that of the gradients.
    saves = args.recipes and args.device == "cpu"
    for name, masking in strategies.items():
        model = share(build(size, masking, args.device), stock) if masking else stock
        counts[name] = flops(model, images[:2])
        if saves:
            memory[name] = saved_bytes(model, images)
        steps[name] = step_of(model, images, args.amp, args.compile, state)
        for _ in range(args.warmup if args.rounds or not saves else 0):
            steps[name]()
    if not saves:
        memory = {name: peak_bytes(step, args.device) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    every = {name: 1 if args.recipes or name in EVERY_ROUND else 3 for name in steps}
    for turn in range(args.rounds):
        # Another order every time: what comes after the stock step has its cache.
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn % every[name] == 0:
                times[name].append(seconds(steps[name], args.device))
    rows = []
    for name in steps:
        row = dict(
            model=size, strategy=name, device=args.device, batch=batch,
            amp=args.amp, compile=args.compile, rounds=len(times[name]),
            flops_ratio=f"{counts[name] / counts['stock']:.4f}",
            memory_mb=f"{memory[name] / 2**20:.4g}",
            memory_ratio=f"{memory[name] / memory['stock']:.4f}",
            torch=torch.__version__, hardware=hardware(args.device),
        )  # fmt: skip
        if args.rounds:
            row |= timed(times[name], times["stock"][:: every[name]])
        rows.append(row)
        show(row)
    return rows


def timed(times: list[float], stock: list[float]) -> dict[str, str]:
    """The columns of the step time."""
    ratio, low, high = ratio_of(times, stock)
    return dict(
        step_ms=f"{1000 * statistics.median(times):.4g}",
        step_ratio=f"{ratio:.4f}", step_low=f"{low:.4f}", step_high=f"{high:.4f}",
    )  # fmt: skip


def mask_paths(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Images to visible tokens, at ViT-B's sizes, and what the learned path is compared with."""
    batch = args.batch or PATH_BATCH
    images = torch.randn(batch, 3, 224, 224, device=args.device)
    tokens = torch.randn(batch, 196, 768, device=args.device)
    reference = build("tiny", None, args.device).backbone
    random = build("tiny", dict(type="RandomMasking"), args.device).masking
    learned = build("tiny", STRATEGIES[SHIPPED], args.device).masking
    side = 224 // learned.network.downsample
    hidden = torch.randn(batch, 32, side, side, device=args.device)
    convolution = torch.nn.Conv2d(32, 32, 3, padding=1).to(args.device)

    def visible(patch_mask: PatchMask) -> None:
        patch_mask.gather_visible(tokens)

    return {
        "stock": lambda: reference.random_masking(tokens, 0.75),
        "RandomMasking": lambda: visible(random(images)),
        SHIPPED: lambda: visible(learned(images)),
        "its network alone": lambda: learned.network(images),
        "a convolution": lambda: convolution(hidden),
    }


def mask_path(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Images to visible tokens beside mmpretrain's own random_masking of tokens, forward only.

    What the shipped network may cost is the row ``target``: the time of the stock path, and that
    of the network's FLOPs at the speed of a convolution of its hidden layers' size.
    """
    paths = mask_paths(args)
    times: dict[str, list[float]] = {name: [] for name in paths}
    with torch.no_grad():
        for turn in range(args.warmup + 5 * args.rounds):
            for name, path in paths.items():
                elapsed = seconds(path, args.device)
                if turn >= args.warmup:
                    times[name].append(elapsed)
        work = {}
        for name in ("its network alone", "a convolution"):
            with FlopCounterMode(display=False) as counter:
                paths[name]()
            work[name] = counter.get_total_flops()
    share = work["its network alone"] / work["a convolution"]
    times["target"] = [
        stock + share * one
        for stock, one in zip(times["stock"], times["a convolution"], strict=True)
    ]
    rows = []
    for name, measured in times.items():
        rows.append(
            dict(
                model="mask path", strategy=name, device=args.device,
                batch=args.batch or PATH_BATCH, amp=False,
                compile=False, rounds=5 * args.rounds, **timed(measured, times["stock"]),
                torch=torch.__version__, hardware=hardware(args.device),
            )
        )  # fmt: skip
        show(rows[-1])
    return rows


def profile(size: str, args: argparse.Namespace) -> None:
    """Print the operators in which a step, or the mask path, with the shipped network differs most
    from the stock one: self time of both, mean over the rounds.
    """
    if size == "path":
        paths = mask_paths(args)
    else:
        shape = (args.batch or SIZES[size][3], 3, SIZES[size][2], SIZES[size][2])
        images = torch.randn(shape, device=args.device)
        stock = build(size, None, args.device)
        learned = share(build(size, STRATEGIES[SHIPPED], args.device), stock)
        paths = {
            name: step_of(model, images, args.amp, False, {})
            for name, model in (("stock", stock), (SHIPPED, learned))
        }
    key = f"self_{'device' if args.device == 'cuda' else 'cpu'}_time_total"
    spent: dict[str, dict[str, float]] = {}
    for name in ("stock", SHIPPED):
        with torch.set_grad_enabled(size != "path"):
            paths[name]()
            with torch.profiler.profile() as profiler:
                for _ in range(args.rounds):
                    paths[name]()
        spent[name] = {
            event.key: getattr(event, key) / 1000 / args.rounds for event in profiler.key_averages()
        }
    print(f"{size}, ms: stock {sum(spent['stock'].values()):.1f}, ", end="")
    print(f"{SHIPPED} {sum(spent[SHIPPED].values()):.1f}")
    operators = {name for times in spent.values() for name in times}
    more = {o: spent[SHIPPED].get(o, 0.0) - spent["stock"].get(o, 0.0) for o in operators}
    for operator in sorted(operators, key=lambda o: -abs(more[o]))[:15]:
        before, after = (spent[name].get(operator, 0.0) for name in ("stock", SHIPPED))
        print(f"{operator[:50]:50s} {before:8.2f} {after:8.2f}  {after - before:+8.2f}")


def show(row: dict[str, Any]) -> None:
    keys = ("model", "strategy", "step_ms", "step_ratio", "flops_ratio", "memory_ratio")
    print("  ".join(f"{key}={row[key]}" for key in keys if key in row), flush=True)


def write(rows: list[dict[str, Any]], recipes: bool) -> None:
    """Put the rows into the CSV, in the place of older ones of the same key, and make the table."""
    path = RESULTS / ("recipes.csv" if recipes else "overhead.csv")
    fields = (
        *KEY, "rounds", "step_ms", "step_ratio", "step_low", "step_high", "flops_ratio",
        "memory_mb", "memory_ratio", "torch", "hardware",
    )  # fmt: skip
    old: list[dict[str, Any]] = []
    if path.exists():
        with path.open() as file:
            old = list(csv.DictReader(file))
    new = [{field: str(row.get(field, "")) for field in fields} for row in rows]
    taken = {tuple(row[key] for key in KEY) for row in new}
    kept = [row for row in old if tuple(row[key] for key in KEY) not in taken]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *new])
    rows = [*kept, *new]
    parts = [RECIPES_HEAD, *recipe_verdicts(rows)] if recipes else [HEAD, *verdicts(rows)]
    path.with_suffix(".md").write_text("\n".join([*parts, "", *table(rows)]) + "\n")


HEAD = """\
# The price of a mask

Made by `python -m benchmarks.overhead`, which says what is measured. Ratios to stock
random masking, in one process and in turns; in brackets the 95 % bootstrap interval of
the median.
"""
RECIPES_HEAD = """\
# The price of a recipe

Made by `python -m benchmarks.overhead --recipes`, which says what is measured: whole training
steps of mmpretrain's MAE with learned masks, as ratios to the stock recipe: random masks at 0.75,
everything masked predicted, no masking network. In one process and in turns; in brackets the 95 %
bootstrap interval of the median. Memory on a CPU is what the forward pass saves for the backward
pass. Where there is no time, FLOPs and memory alone were measured.
"""


def table(rows: list[dict[str, str]]) -> list[str]:
    """The CSV as Markdown."""
    head = ["model", "strategy", "step time", "FLOPs", "memory"]
    head += ["step, ms", "batch", "rounds", "on"]
    lines = []
    for row in rows:
        on = row["hardware"] + ", torch " + row["torch"]
        on += ", bf16" * (row["amp"] == "True") + ", compiled" * (row["compile"] == "True")
        interval = "-"
        if row["step_ratio"]:
            interval = f"{float(row['step_ratio']):.3f} [{float(row['step_low']):.3f}, "
            interval += f"{float(row['step_high']):.3f}]"
        counts = (row[name] or "-" for name in ("flops_ratio", "memory_ratio", "step_ms"))
        lines.append(
            [row["model"], row["strategy"], interval, *counts, row["batch"], row["rounds"], on]
        )
    return markdown_table(head, lines)


def setting(row: dict[str, str]) -> str:
    """Which model, where."""
    where = f"{row['model']}, {row['device']}, batch {row['batch']}"
    return where + ", bf16" * (row["amp"] == "True") + ", compiled" * (row["compile"] == "True")


def beside(row: dict[str, str], targets: dict[str, float]) -> str:
    """A row's ratios, those above their target marked."""
    texts = []
    for name, most in targets.items():
        text = f"{name.removesuffix('_ratio')} "
        text += f"{float(row[name]):.3f}" if row[name] else "not measured"
        texts.append(text + " **missed**" * (bool(row[name]) and float(row[name]) > most))
    return ", ".join(texts)


def limits(targets: dict[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_ratio')} {most}" for name, most in targets.items())


def recipe_verdicts(rows: list[dict[str, str]]) -> list[str]:
    """CHEAP beside its targets, a line per setting of a model that has any."""
    lines = []
    for model, targets in RECIPE_TARGETS.items():
        lines += [f"`{CHEAP}` may cost at most, on {model}: {limits(targets)}.", ""]
        for row in rows:
            if (row["model"], row["strategy"]) == (model, CHEAP):
                lines.append(f"- {setting(row)}: {beside(row, targets)}")
    return lines


def verdicts(rows: list[dict[str, str]]) -> list[str]:
    """The shipped network beside its targets, a line per model and setting."""
    lines = [
        f"`{SHIPPED}` is the shipped network. It may cost at most: {limits(TARGETS)};",
        "its mask path no more than the row `target`.",
        "",
    ]
    path = {
        (row["strategy"], row["device"], row["batch"]): float(row["step_ms"])
        for row in rows
        if row["model"] == "mask path"
    }
    order = [*SIZES, "mask path"]
    shipped = [row for row in rows if row["strategy"] == SHIPPED]
    for row in sorted(shipped, key=lambda row: order.index(row["model"])):
        if row["model"] == "mask path":
            spent, most = (path[s, row["device"], row["batch"]] for s in (SHIPPED, "target"))
            word = "met" if spent <= most else "**missed**"
            lines.append(f"- {setting(row)}: {spent:g} ms of {most:g}: {word}")
        else:
            lines.append(f"- {setting(row)}: {beside(row, TARGETS)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="The price of a masking strategy.")
    parser.add_argument("--models", nargs="*", choices=[*SIZES, "path"])
    parser.add_argument("--recipes", action="store_true", help="by default of small, base, large")
    parser.add_argument("--profile", choices=[*SIZES, "path"], help="of one, instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="images; by default few, for a CPU")
    parser.add_argument("--rounds", type=int, default=12, help="0: no times of models")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    args = parser.parse_args()
    MMLogger.get_instance("overhead", log_level="ERROR")  # what init_weights has to say
    if args.profile:
        profile(args.profile, args)
        return
    usual = ["small", "base", "large"] if args.recipes else [*SIZES, "path"]
    for size in args.models or usual:
        write(mask_path(args) if size == "path" else measure(size, args), args.recipes)


if __name__ == "__main__":
    main()
