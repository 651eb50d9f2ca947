"""Reading the weights out of a training checkpoint without trusting it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class _Ignored:
    """Stands for whatever in a checkpoint is not a tensor: built, never looked at."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """A checkpoint of mmengine's Runner, or any dict that ``torch.save`` wrote, on the CPU.

    Read with ``weights_only=True``. mmengine's log buffers and numpy's scalars, which that refuses,
    become inert objects, whatever the file says they are: no code named by the file is run, and
    mmengine need not be installed. Tensors, strings, numbers, lists and dicts come as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or is no checkpoint.
        RuntimeError: torch is older than 2.6.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint file, but {path} does not exist")
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise RuntimeError(
            "reading a training checkpoint safely needs torch 2.6 or newer, got "
            f"{torch.__version__}; run this command in an environment with a newer torch"
        )
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Ignored, name) for name in names]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file fails in the unpickler in as many ways as there are files.
    except Exception as error:
        if of_the_machine(error):
            raise
        raise ValueError(
            f"expected a checkpoint that torch.save wrote, but {path} ({path.stat().st_size} "
            f"bytes) cannot be read: it is truncated or of another kind ({reason(error)})"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"expected a dict in {path}, got a {type(checkpoint).__name__}")
    return checkpoint


def of_the_machine(error: Exception) -> bool:
    """Whether reading failed by the memory or the disk, and not by what is in the file.

    A file that is cut off may send the reader before its beginning, which is EINVAL.
    """
    if isinstance(error, OSError):
        return error.errno != errno.EINVAL
    return isinstance(error, torch.OutOfMemoryError)


def reason(error: Exception) -> str:
    """The error's kind and first line, without torch's advice to give up the safety."""
    advice = ("Weights only load failed", "Please file an issue", "Check the documentation")
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(advice)]
    return ", ".join([type(error).__name__, *told[:1]])


def backbone_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The encoder's weights, named as in the encoder.

    Where the run had an ``EMAHook`` these are the averaged weights: mmengine puts them into
    ``state_dict`` when it saves, and the raw ones into ``ema_state_dict``. Without weights named
    ``backbone.*`` it raises a ValueError.
    """
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict):
        raise ValueError(
            "expected a checkpoint of mmengine's Runner, a dict with the key 'state_dict', got "
            f"the keys {_some(checkpoint)}"
        )
    weights = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state.items()
        if name.startswith("backbone.") and isinstance(tensor, Tensor)
    }
    if not weights:
        raise ValueError(
            "expected weights named backbone.* in the checkpoint's state_dict, got "
            f"{_some(state)}; is it a checkpoint of one of mmpretrain's methods?"
        )
    return weights


def _some(names: Any) -> str:
    """A few of the names, for an error."""
    shown = sorted(map(str, names))
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(shown[:5]) + more or "none"
