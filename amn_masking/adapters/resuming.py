"""One refusal for every host: a checkpoint that is not a run of this very model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

MASKING = "masking."
ORIGINS = {
    "masking.threshold.": "a run with another threshold",
    "masking.network.": "a run with another masking network",
}


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What tells the weights of a file from those of a model, in words; empty if nothing does.

    Args:
        found: weights in the file, by name.
        wanted: the model's, ``model.state_dict()``.
    """
    lines: list[str] = []
    names: list[str] = []
    for title, some in (
        ("missing in the file", wanted.keys() - found.keys()),
        ("not in the model", found.keys() - wanted.keys()),
        (
            "of another shape",
            {n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape},
        ),
    ):
        if some:
            shown = sorted(some)[:4] + ["..."] * (len(some) > 4)
            lines.append(f"{len(some)} {title} ({', '.join(shown)})")
            names += some
    if not lines:
        return ""
    hint = ""
    if all(name.startswith(MASKING) for name in names):
        before, now = (any(n.startswith(MASKING) for n in weights) for weights in (found, wanted))
        if before and now:
            origins = {
                origin for part, origin in ORIGINS.items() for n in names if n.startswith(part)
            }
            hint = " and ".join(sorted(origins)) or "a run with another masking strategy"
        else:
            hint = "a run without masking" if now else "a run with a masking network"
    return (
        f"expected the model's {len(wanted)} weights, got {'; '.join(lines)}"
        f"{hint and f'. The file comes from {hint}'}"
    )
