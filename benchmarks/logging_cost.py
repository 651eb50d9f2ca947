"""What logging costs at the end of a long run, stock mmpretrain against masked methods.

    python -m benchmarks.logging_cost

mmengine keeps the history of every number it logs, copies it when a value is added, and writes it
into every checkpoint. Here a run of 312 steps an epoch (ImageNet, 8 x 512 images) is simulated up
to its last steps: the histories are filled, and mmengine's and this package's hooks do what they do
after a step. Writes docs/results/logging_cost.md. No GPU: on one, each read of a number also waits
for the device.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer, MessageHub

from amn_masking.adapters.mmpretrain.runner.numbers_hook import NumbersHook
from benchmarks.markdown import markdown_table

RESULT = Path(__file__).resolve().parents[1] / "docs/results/logging_cost.md"
STEPS, INTERVAL, TIMED = 312, 100, 300
STOCK = ("lr", "data_time", "time", "loss")
OURS = (
    "reconstruction", "adversarial", "mask_ratio", "mask_ratio_min", "mask_ratio_max",
    "score_spread", "threshold", "strength",
)  # fmt: skip
KINDS = {
    "stock": ((), False),
    "masked, every number in every step": (OURS, False),
    "masked, as it is (NumbersHook)": (OURS, True),
}


def measure(epochs: int, numbers: tuple[str, ...], sparse: bool) -> tuple[float, float, float]:
    """Milliseconds of logging a step, megabytes of history in a checkpoint, seconds to save it."""
    hub = MessageHub.get_instance(f"{epochs}_{len(numbers)}_{sparse}")
    lines = epochs * (STEPS // INTERVAL + 1)
    for name in (*STOCK, *numbers):
        length = lines if sparse and name in numbers else epochs * STEPS
        history = HistoryBuffer(np.random.rand(length).tolist(), [1] * length)
        hub.log_scalars[f"train/{name}"] = history
    runner: Any = SimpleNamespace(
        message_hub=hub, hooks=[LoggerHook(interval=INTERVAL)], train_dataloader=range(STEPS)
    )
    hooks: list[Any] = [*([NumbersHook()] if sparse else []), RuntimeInfoHook()]
    values = {name: torch.rand(()) for name in ("loss", *numbers)}
    begin = time.perf_counter()
    for step in range(TIMED):
        for name in STOCK[:-1]:  # what mmengine's other hooks write in every step
            hub.update_scalar(f"train/{name}", 0.1)
        outputs = dict(values)
        for hook in hooks:
            hook.after_train_iter(runner, step % STEPS, None, outputs)
    milliseconds = (time.perf_counter() - begin) / TIMED * 1e3
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "hub.pth")
        begin = time.perf_counter()
        torch.save(hub.state_dict(), path)
        return milliseconds, os.path.getsize(path) / 1e6, time.perf_counter() - begin


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "# What logging costs",
        "",
        "Made by `python -m benchmarks.logging_cost`: the end of a run of 312 steps an epoch, a",
        f"line every {INTERVAL} steps, on one core of a shared CPU machine; times vary by a third.",
        "",
    ]
    costs = []
    for epochs in (300, 1600):
        for name, (numbers, sparse) in KINDS.items():
            cost = measure(epochs, numbers, sparse)
            costs.append([name, epochs, f"{cost[0]:.2f}", f"{cost[1]:.1f}", f"{cost[2]:.2f}"])
            print(*costs[-1], flush=True)
    lines += [
        *markdown_table(["", "epochs", "ms a step", "MB in a checkpoint", "s to save them"], costs),
        "",
        "Host reads, counted on the CPU: in a step that writes no line a masked method reads back",
        "one value more than stock, the core's look for NaN among the scores, which on a GPU is an",
        "assertion on the device. No GPU was used. The test that holds this:",
        "`tests/adapters/mmpretrain/runner/test_numbers_hook.py`.",
        "",
    ]
    RESULT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
