"""The price of a masking strategy: step time, memory and FLOPs beside stock random masking.

    python -m benchmarks.overhead                # CPU: ViT-T/S/B/L at 224 and ViT-B at 448
    python -m benchmarks.overhead --models base --batch 256 --device cuda --amp --compile
    python -m benchmarks.overhead --profile tiny # where the learned mask's time goes

A step is forward, backward and optimizer of mmpretrain's MAE at its own mask ratio of 0.75, with
``type='MAE'`` as it is, and with ``type='amn_masking.MAE'`` and each strategy. All of a model are
in one process, share the autoencoder's weights and AdamW's state, and take turns, step by step,
because machines are noisy: what counts is the ratio of a step to the stock step of the same round.
Median over the rounds, and the 95 % bootstrap interval of that median. Strategies other than
``EVERY_ROUND`` take part in each third round.

FLOPs are torch's count (FlopCounterMode) of forward and backward. Memory is the peak of one step
above what the weights take: on CUDA the allocator's, on the CPU torch's profiler's.

docs/results/overhead.csv has a row per model, strategy, device and setting; rows of the same key
are replaced. docs/results/overhead.md is the table.
"""

from __future__ import annotations

import argparse
import csv
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from scipy.stats import bootstrap
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import amn_masking.adapters.mmpretrain  # noqa: F401  (registers)
from amn_masking.mask import PatchMask

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
    "AMN, downsample 8": dict(type="AdversarialMasking", network=dict(downsample=8)),
    "AMN, downsample 4": dict(type="AdversarialMasking", network=dict(downsample=4)),
    "AMN, downsample 1": dict(type="AdversarialMasking", network=dict(downsample=1)),
}
SHIPPED = "AMN, downsample 8"  # in configs/mmpretrain/_base_/amn.py
TARGETS = {"flops_ratio": 1.01, "step_ratio": 1.02, "memory_ratio": 1.02}  # of SHIPPED, at most
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


def flops(model: Any, images: Tensor) -> int:
    """Of forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model.parse_losses(model.loss(images, []))[0].backward()
    model.zero_grad()
    return counter.get_total_flops()


def ratio_of(times: list[float], stock: list[float]) -> tuple[float, float, float]:
    """Median ratio to the stock step of the same round, and its 95 % bootstrap interval."""
    ratios = np.array(times) / np.array(stock)
    if len(ratios) < 3:
        return float(np.median(ratios)), float(ratios.min()), float(ratios.max())
    found = bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return float(np.median(ratios)), float(low), float(high)


def measure(size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model."""
    batch = args.batch or SIZES[size][3]
    images = torch.randn(batch, 3, SIZES[size][2], SIZES[size][2], device=args.device)
    stock = build(size, None, args.device)
    state: dict[Tensor, Any] = {}
    counts, steps = {}, {}
    for name, masking in STRATEGIES.items():
        model = share(build(size, masking, args.device), stock) if masking else stock
        counts[name] = flops(model, images)
        steps[name] = step_of(model, images, args.amp, args.compile, state)
        for _ in range(args.warmup):
            steps[name]()
    memory = {name: peak_bytes(step, args.device) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds):
        # Another order every time: what comes after the stock step has its cache.
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name in EVERY_ROUND or turn % 3 == 0:
                times[name].append(seconds(steps[name], args.device))
    rows = []
    for name in steps:
        every = 1 if name in EVERY_ROUND else 3
        ratio, low, high = ratio_of(times[name], times["stock"][::every])
        rows.append(
            dict(
                model=size, strategy=name, device=args.device, batch=batch,
                amp=args.amp, compile=args.compile, rounds=len(times[name]),
                step_ms=f"{1000 * statistics.median(times[name]):.4g}",
                step_ratio=f"{ratio:.4f}", step_low=f"{low:.4f}", step_high=f"{high:.4f}",
                flops_ratio=f"{counts[name] / counts['stock']:.4f}",
                memory_mb=f"{memory[name] / 2**20:.4g}",
                memory_ratio=f"{memory[name] / memory['stock']:.4f}",
                torch=torch.__version__, hardware=hardware(args.device),
            )
        )  # fmt: skip
        show(rows[-1])
    return rows


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
        ratio, low, high = ratio_of(measured, times["stock"])
        rows.append(
            dict(
                model="mask path", strategy=name, device=args.device,
                batch=args.batch or PATH_BATCH, amp=False,
                compile=False, rounds=5 * args.rounds,
                step_ms=f"{1000 * statistics.median(measured):.4g}",
                step_ratio=f"{ratio:.4f}", step_low=f"{low:.4f}", step_high=f"{high:.4f}",
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


def hardware(device: str) -> str:
    """What it ran on, without the machine's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def write(rows: list[dict[str, Any]]) -> None:
    """Put the rows into the CSV, in the place of older ones of the same key, and make the table."""
    path = RESULTS / "overhead.csv"
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
    (RESULTS / "overhead.md").write_text(table([*kept, *new]))


def table(rows: list[dict[str, str]]) -> str:
    """The CSV as Markdown."""
    lines = [
        "# The price of a mask",
        "",
        "Made by `python -m benchmarks.overhead`, which says what is measured. Ratios to stock",
        "random masking, in one process and in turns; in brackets the 95 % bootstrap interval of",
        "the median.",
        "",
        *verdicts(rows),
        "",
        "| model | strategy | step time | FLOPs | memory | step, ms | batch | rounds | on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        on = row["hardware"] + ", torch " + row["torch"]
        on += ", bf16" * (row["amp"] == "True") + ", compiled" * (row["compile"] == "True")
        interval = f"{float(row['step_ratio']):.3f} [{float(row['step_low']):.3f}, "
        interval += f"{float(row['step_high']):.3f}]"
        lines.append(
            f"| {row['model']} | {row['strategy']} | {interval} | {row['flops_ratio'] or '-'} | "
            f"{row['memory_ratio'] or '-'} | {row['step_ms']} | {row['batch']} | {row['rounds']} | "
            f"{on} |"
        )
    return "\n".join(lines) + "\n"


def verdicts(rows: list[dict[str, str]]) -> list[str]:
    """The shipped network beside its targets, a line per model and setting."""
    limits = ", ".join(f"{name.removesuffix('_ratio')} {most}" for name, most in TARGETS.items())
    lines = [
        f"`{SHIPPED}` is the shipped network. It may cost at most: {limits};",
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
        where = f"{row['model']}, {row['device']}, batch {row['batch']}"
        where += ", bf16" * (row["amp"] == "True") + ", compiled" * (row["compile"] == "True")
        if row["model"] == "mask path":
            spent, most = (path[s, row["device"], row["batch"]] for s in (SHIPPED, "target"))
            word = "met" if spent <= most else "**missed**"
            lines.append(f"- {where}: {spent:g} ms of {most:g}: {word}")
            continue
        found = {name: float(row[name]) for name in TARGETS}
        texts = [
            f"{name.removesuffix('_ratio')} {found[name]:.3f}"
            + ("" if found[name] <= most else " **missed**")
            for name, most in TARGETS.items()
        ]
        lines.append(f"- {where}: {', '.join(texts)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="The price of a masking strategy.")
    parser.add_argument("--models", nargs="*", choices=[*SIZES, "path"], default=[*SIZES, "path"])
    parser.add_argument("--profile", choices=[*SIZES, "path"], help="of one, instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="images; by default few, for a CPU")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    args = parser.parse_args()
    MMLogger.get_instance("overhead", log_level="ERROR")  # what init_weights has to say
    if args.profile:
        profile(args.profile, args)
        return
    for size in args.models:
        write(mask_path(args) if size == "path" else measure(size, args))


if __name__ == "__main__":
    main()
