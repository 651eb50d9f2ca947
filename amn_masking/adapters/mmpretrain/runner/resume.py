"""Reading checkpoints safely, and refusing to resume from what is not this model's."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner
from mmengine.utils import digit_version

from amn_masking.adapters.mmpretrain.checks import MaskableMethod
from amn_masking.adapters.mmpretrain.runner.pictures_hook import unwrapped
from amn_masking.adapters.resuming import differences
from amn_masking.tools.checkpoints import of_the_machine, reason

STATISTICS = ("min", "max", "current", "mean")


def statistic(owner: Any, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: HistoryBuffer's statistics, no more."""
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise ValueError(
            f"the file asks for attribute {name!r} of {owner!r}; expected a statistic of "
            f"HistoryBuffer, one of {', '.join(STATISTICS)}"
        )
    return getattr(owner, name)


# What a checkpoint of mmengine's Runner holds beside tensors, numbers, strings and plain
# containers: the history of each logged number and its counts, arrays of floats or integers, and
# the expected time of arrival, a numpy float. All of it is data:
SAFE_GLOBALS: tuple[Any, ...] = (
    HistoryBuffer,  # a holder of two arrays; reading one sets attributes and runs nothing
    (statistic, "builtins.getattr"),  # its pickle looks up min, max, current, mean by `getattr`
    np.ndarray,  # the arrays
    np.empty(0).__reduce__()[0],  # numpy's _reconstruct: an empty array, filled from bytes next
    np.float64(0).__reduce__()[0],  # numpy's scalar: one number, from its bytes
    np.dtype,  # the element type of both, made from its name
    type(np.dtype("float64")),  # the two element types themselves, whose byte order is set
    type(np.dtype("int64")),
)
# numpy 2 moved its module: a run may be resumed with the other one.
OTHER_NUMPY: tuple[Any, ...] = tuple(
    (value.__reduce__()[0], f"{package}.multiarray.{name}")
    for value, name in ((np.empty(0), "_reconstruct"), (np.float64(0), "scalar"))
    for package in ("numpy.core", "numpy._core")
)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """A checkpoint from a local file, read with torch's ``weights_only``.

    Stands in for mmengine's own loader of local files while a masked model is loaded. That of
    0.10.7 leaves the choice to torch, which since 2.6 refuses the log buffers in every checkpoint
    of the Runner; that of the forks falls back to running whatever code the file asks for. This one
    allows :data:`SAFE_GLOBALS` and what the user gave to ``torch.serialization.add_safe_globals``.
    torch's own switch, ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``, counts here too.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: the file is cut off, is no checkpoint, or holds other types.
    """
    path = os.path.expanduser(filename)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"expected a checkpoint at {filename!r}, found no such file. If the run looked it up "
            "in 'last_checkpoint' of its work_dir: write the path of a checkpoint that is there "
            "into that file, or remove it to start anew"
        )
    try:
        with torch.serialization.safe_globals([*SAFE_GLOBALS, *OTHER_NUMPY]):
            return torch.load(path, map_location=map_location)
    # A damaged or foreign file fails in the unpickler in as many ways as there are files.
    except Exception as error:
        if of_the_machine(error):
            raise
        unlisted = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error))
        if unlisted:
            why = (
                f"it holds {unlisted[1]}, which is neither a tensor nor a log of mmengine's. If "
                "you trust the file, call torch.serialization.add_safe_globals with it first (a "
                "module named in custom_imports is a place)"
            )
        else:
            why = (
                f"{reason(error)}. A run that was stopped while it wrote the file leaves it cut off"
            )
        raise RuntimeError(
            f"{filename} expected to be a checkpoint of torch.save, but cannot be read: {why}. "
            "Nothing was loaded or changed. To go on from an older checkpoint, name it: --resume "
            "work_dir/epoch_N.pth, or write its path into work_dir/last_checkpoint"
        ) from error


def check_resumable(checkpoint: Any, model: torch.nn.Module, filename: str) -> None:
    """Refuse a checkpoint that does not hold a run of this very model."""
    mend = (
        "Nothing was loaded or changed. Only a run of the same model can be resumed; to start a "
        f"new run from these weights, set load_from={filename!r} and resume=False"
    )
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    if (
        not isinstance(meta, Mapping)
        or not {"epoch", "iter"} <= meta.keys()
        or not {"state_dict", "message_hub"} <= checkpoint.keys()
    ):
        held = sorted(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else None
        raise ValueError(
            f"{filename} expected to hold a run to resume (state_dict, message_hub, meta with "
            f"epoch and iter), got {held or type(checkpoint).__name__}. {mend}"
        )
    found = {k.removeprefix("module."): weight for k, weight in checkpoint["state_dict"].items()}
    if different := differences(found, model.state_dict()):
        raise ValueError(f"{filename} does not fit {type(model).__name__}: {different}. {mend}")


class CheckBeforeLoading(Hook):
    """For the duration of one resume: looks at the checkpoint before the model takes it.

    mmengine itself loads what fits and warns about the rest, which is right for ``load_from``, but
    would go on with half a model here.
    """

    priority = "HIGHEST"

    def __init__(self, filename: str) -> None:
        self.filename = filename

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        check_resumable(checkpoint, unwrapped(runner), self.filename)


def read_locally_with(loader: Callable) -> Callable:
    """Let mmengine read local files by ``loader``; the one that did so far."""
    before = CheckpointLoader._schemes[""]  # mmengine has a way to set it and none to ask
    # Before 2.6 torch.load is not safe by default and reads the checkpoints as they are.
    if digit_version(torch.__version__) >= digit_version("2.6"):
        CheckpointLoader.register_scheme("", loader, force=True)
    return before


@contextmanager
def read_safely() -> Iterator[None]:
    """For the duration, mmengine reads local files by :func:`load_from_local`."""
    before = read_locally_with(load_from_local)
    try:
        yield
    finally:
        read_locally_with(before)


def for_masked_models(method: Callable, check: bool) -> Callable:
    """A method of the Runner that reads safely, and checks first, if its model has ``masking``."""

    @functools.wraps(method)
    def wrapped(runner: Runner, filename: str, *args: Any, **kwargs: Any) -> Any:
        model = unwrapped(runner)
        if not isinstance(model, MaskableMethod) or model.masking is None:
            return method(runner, filename, *args, **kwargs)
        with ExitStack() as stack:
            stack.enter_context(read_safely())
            if check:
                hook = CheckBeforeLoading(filename)
                runner.register_hook(hook)
                stack.callback(runner.hooks.remove, hook)
            return method(runner, filename, *args, **kwargs)

    return wrapped


def install() -> None:
    """Put both in the Runner's place."""
    Runner.resume = for_masked_models(Runner.resume, check=True)
    Runner.load_checkpoint = for_masked_models(Runner.load_checkpoint, check=False)
