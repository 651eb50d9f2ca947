"""What the timings of the benchmarks share."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap


def ratio_of(times: list[float], stock: list[float]) -> tuple[float, float, float]:
    """Median ratio to the stock time of the same round, and its 95 % bootstrap interval."""
    ratios = np.array(times) / np.array(stock)
    if len(ratios) < 3:
        return float(np.median(ratios)), float(ratios.min()), float(ratios.max())
    found = bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return float(np.median(ratios)), float(low), float(high)


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
