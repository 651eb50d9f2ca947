"""What an encoder of photographs is worth: probes with all and with few labels, neighbours, and the
probe on disturbed test images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amn_masking.tools.knn import vote
from benchmarks.study.classifiers import few, fit_probe
from benchmarks.study.data import Data
from benchmarks.study.measures import PROBE_CS

FEW = {"probe_1_percent": 0.01, "probe_10_percent": 0.1}


def feature_metrics(
    encode: Callable[[Tensor], Tensor], data: Data, probe_c: float | None, seed: int
) -> dict[str, float]:
    """Accuracies on the test images, in [0, 1].

    Args:
        encode: ``(N, C, S, S)`` to ``(N, D)`` features.
        data: to fit the probe on, and to test on.
        probe_c: of all probes; None for the one of ``PROBE_CS`` that is best *on the test images*
            with all labels, which no method may do, but a baseline to beat may.
        seed: of the few labels.
    """
    device = data.train.pixels.device
    labels, answers = (
        torch.from_numpy(images.labels).to(device) for images in (data.train, data.test)
    )
    known, queries = encode(data.train.centre()), encode(data.test.centre())
    cs = PROBE_CS if probe_c is None else (probe_c,)
    fitted = {c: fit_probe(known, labels, c) for c in cs}
    best = max(cs, key=lambda c: fitted[c].score(queries, answers))
    probe = fitted[best]
    metrics = {
        "probe": probe.score(queries, answers),
        "knn": float((vote(known, labels, queries) == answers).double().mean()),
    }
    for name, share in FEW.items():
        ids = torch.from_numpy(few(data.train.labels, share, seed)).to(device)
        metrics[name] = fit_probe(known[ids], labels[ids], best).score(queries, answers)
    for name, pixels in data.disturbed.items():
        metrics[f"probe_{name}"] = probe.score(encode(pixels), answers)
    return metrics
