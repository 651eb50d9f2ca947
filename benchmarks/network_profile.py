"""Where the masking network's time goes, and what else was tried.

    python -m benchmarks.network_profile    # about three minutes

Each row changes one part of the shipped network, or of the variance of a patch. All take turns in
one process, and what counts is the ratio to the shipped form in the same round. One thread, and the
time that the thread itself was given, because other jobs on the machine then disturb less. Writes
docs/results/network_profile.md.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amn_masking.network import MaskingNetwork, area_pool
from amn_masking.patches import patchify
from amn_masking.rewards import patch_variance
from benchmarks.markdown import markdown_table
from benchmarks.timing import hardware, ratio_of

RESULT = Path(__file__).resolve().parents[1] / "docs/results/network_profile.md"
GRID = (14, 14)
Pool = Callable[[Tensor, int], Tensor]


def pool_convolution(images: Tensor, factor: int) -> Tensor:
    """The mean as a convolution of equal weights."""
    weight = images.new_full((1, 1, factor, factor), factor**-2)
    return F.conv2d(images.flatten(0, 1)[:, None], weight, stride=factor).view(
        *images.shape[:2], images.shape[2] // factor, -1
    )


def pool_channels_last(images: Tensor, factor: int) -> Tensor:
    return F.avg_pool2d(images.contiguous(memory_format=torch.channels_last), factor)


def pool_area(images: Tensor, factor: int) -> Tensor:
    size = (images.shape[2] // factor, images.shape[3] // factor)
    return F.interpolate(images, size, mode="area")


def pool_by_axis(images: Tensor, factor: int) -> Tensor:
    return area_pool(images, (factor, factor))


def pool_at_once(images: Tensor, factor: int) -> Tensor:
    return images.unflatten(2, (-1, factor)).unflatten(4, (-1, factor)).mean((3, 5))


class Variant(MaskingNetwork):
    """The network with a part in another form."""

    def __init__(
        self,
        downsample: int,
        pool: Pool = pool_by_axis,
        layout: torch.memory_format = torch.channels_last,
        last: Callable[[nn.Conv2d, Tensor], Tensor] | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__(downsample=downsample)
        self.pool, self.layout, self.last, self.bf16 = pool, layout, last, bf16

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool(images, self.factors[0])
        pooled = pooled.contiguous(memory_format=self.layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            if self.last is None:
                return torch.sigmoid(self.convolutions(pooled))
            convolution: Any = self.convolutions[-1]
            return torch.sigmoid(self.last(convolution, self.convolutions[:-1](pooled)))


def by_places(convolution: nn.Conv2d, hidden: Tensor) -> Tensor:
    """Each place of the kernel as a channel of a 1 x 1 convolution; these are added, each shifted
    to its place. Flipped, because fold spreads a pixel where a convolution gathers.
    """
    places = convolution.weight[0].flip(1, 2).flatten(1).t()[:, :, None, None]
    summed = F.fold(F.conv2d(hidden, places).flatten(2), hidden.shape[2:], 3, padding=1)
    return summed + convolution.bias[:, None, None]


def transposed(convolution: nn.Conv2d, hidden: Tensor) -> Tensor:
    weight = convolution.weight.transpose(0, 1).flip(2, 3)
    return F.conv_transpose2d(hidden, weight, convolution.bias, padding=1)


VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": dict(),
    "last convolution: by the kernel's places": dict(last=by_places),
    "last convolution: `conv_transpose2d`": dict(last=transposed),
    "all layers contiguous": dict(layout=torch.contiguous_format),
    "pool: `avg_pool2d`": dict(pool=F.avg_pool2d),
    "pool: `avg_pool2d`, channels last before it": dict(pool=pool_channels_last),
    "pool: `interpolate`, area": dict(pool=pool_area),
    "pool: mean over both axes at once": dict(pool=pool_at_once),
    "pool: convolution of equal weights": dict(pool=pool_convolution),
    "bf16 autocast": dict(bf16=True),
}


def variance_by_patches(images: Tensor) -> Tensor:
    """As it was: from patches."""
    size = (images.shape[2] // GRID[0], images.shape[3] // GRID[1])
    return patchify(images, size).unflatten(2, (-1, images.shape[1])).var(2, correction=0).mean(2)


def variance_by_spread(images: Tensor) -> Tensor:
    size = images.shape[2] // GRID[0], images.shape[3] // GRID[1]
    mean = F.avg_pool2d(images, size)
    mean = mean.repeat_interleave(size[0], 2).repeat_interleave(size[1], 3)
    return F.avg_pool2d((images - mean).square_(), size).mean(1).flatten(1)


def variance_by_var(images: Tensor) -> Tensor:
    pixels = images.unflatten(2, (GRID[0], -1)).unflatten(4, (GRID[1], -1))
    return pixels.var((3, 5), correction=0).mean(1).flatten(1)


VARIANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "as shipped": lambda images: patch_variance(images, GRID),
    "`patchify`, then `var`": variance_by_patches,
    "`var` of a view": variance_by_var,
    "`avg_pool2d`, the mean spread to pixels, `avg_pool2d`": variance_by_spread,
}


def take_turns(paths: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, str]]:
    """Median milliseconds of each, and the ratio to the first with its interval."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(rounds + 1):
        for name, path in paths.items():
            start = time.thread_time()
            path()
            if turn:  # the first is warm-up
                times[name].append(time.thread_time() - start)
    first = next(iter(times.values()))
    found = {}
    for name, spent in times.items():
        ratio, low, high = ratio_of(spent, first)
        text = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        found[name] = (1000 * statistics.median(spent), text)
    return found


def network_table(downsample: int, batch: int, rounds: int) -> list[str]:
    images = torch.randn(batch, 3, 224, 224)
    networks = {}
    for name, options in VARIANTS.items():
        torch.manual_seed(0)
        networks[name] = Variant(downsample, **options)
    weight = torch.randn_like(networks["as shipped"](images))

    def step(network: nn.Module) -> list[Tensor]:
        scores = network(images)
        gradients = torch.autograd.grad((scores * weight).sum(), list(network.parameters()))
        return [scores.detach(), *gradients]

    shipped = step(networks["as shipped"])
    with torch.no_grad():
        forward = take_turns(
            {name: functools.partial(one, images) for name, one in networks.items()}, rounds
        )
    both = take_turns(
        {name: functools.partial(step, one) for name, one in networks.items()}, rounds
    )
    head = ["", "forward, ms", "ratio", "and backward, ms", "ratio"]
    head += ["scores differ", "gradients differ"]
    lines = []
    for name, network in networks.items():
        scores, *gradients = (
            float((one - other).abs().max() / other.abs().max())
            for one, other in zip(step(network), shipped, strict=True)
        )
        times = f"{forward[name][0]:.1f}", forward[name][1], f"{both[name][0]:.1f}", both[name][1]
        lines.append([name, *times, f"{scores:.0e}", f"{max(gradients):.0e}"])
        print(*lines[-1], flush=True)
    title = f"Downsample {downsample}, {batch} images, {rounds} rounds:"
    return ["", title, "", *markdown_table(head, lines)]


def variance_table(batch: int, rounds: int) -> list[str]:
    images = torch.randn(batch, 3, 224, 224)
    found = take_turns({n: functools.partial(one, images) for n, one in VARIANCES.items()}, rounds)
    exact = variance_by_patches(images.double())
    title = f"Variance of each patch, {batch} images, {rounds} rounds; the error is beside float64:"
    lines = []
    for name, one in VARIANCES.items():
        error = float(((one(images) - exact) / exact).abs().max())
        lines.append([name, f"{found[name][0]:.0f}", found[name][1], f"{error:.0e}"])
        print(*lines[-1], flush=True)
    return ["", title, "", *markdown_table(["", "ms", "ratio", "error"], lines)]


def operators(batch: int, rounds: int) -> list[str]:
    """Self time of the shipped network's operators, forward."""
    network, images = MaskingNetwork(downsample=8), torch.randn(batch, 3, 224, 224)
    with torch.no_grad():
        network(images)
        with torch.profiler.profile(record_shapes=True) as profiler:
            for _ in range(rounds):
                network(images)
    events = profiler.key_averages(group_by_input_shape=True)
    total = sum(event.self_cpu_time_total for event in events)
    title = f"Operators of the shipped network, forward, of {total / 1000 / rounds:.1f} ms:"
    lines = []
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:8]:
        shapes = " and ".join(str(shape) for shape in event.input_shapes[:2] if shape)
        lines.append([f"`{event.key}`", shapes, f"{event.self_cpu_time_total / total:.1%}"])
        print(*lines[-1], flush=True)
    return ["", title, "", *markdown_table(["operator", "on", "share"], lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the masking network's time goes.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "# The masking network, part by part",
        "",
        "Made by `python -m benchmarks.network_profile`, which says what is measured, on images of",
        f"224 x 224 pixels; {hardware('cpu')}, torch {torch.__version__}.",
        "Ratios are to the shipped form in the same round, above 1 where the other is slower: the",
        "median, and its 95 % bootstrap interval.",
        *network_table(8, args.batch, args.rounds),
        *network_table(4, args.batch // 4, args.rounds),
        *variance_table(args.batch, args.rounds),
        *operators(args.batch, args.rounds),
        "",
        *NOTES,
    ]
    RESULT.write_text("\n".join(lines) + "\n")


NOTES = """\
The variance came from patches before this was measured. What is not taken, and why:

- The last convolution, of one output channel, by its kernel's places is an eighth of the network's
  time, itself far below 1 % of ViT-B's step. Under bf16 it doubles the rounding error of a score.
- A pool by a convolution is faster forward at downsample 8; at 4, and with the backward pass, it is
  not told from the others, and on a GPU cuDNN would by default round the pixels to TF32, to a
  thousandth.
- bf16 halves the time, but moves the scores by more than 1e-5. Strategies make their masks outside
  autocast on purpose, so that a model under autocast has the masks of one in float32.
- The last convolution does not fold into the mean over a patch: a sigmoid stands between, and the
  mean of sigmoids is not the sigmoid of the mean.
- The widest convolution, 32 to 32 channels, is half of what is left. It runs at about 100 billion
  operations a second; the contiguous layout is slower.""".splitlines()


if __name__ == "__main__":
    main()
