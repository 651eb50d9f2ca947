"""What stands around the steps of a masked model in mmengine's Runner.

Importing this changes nothing. What mmengine offers no other place for is put in its place by
:func:`install`, when the first model with ``masking=`` is built, and acts for such models only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mmengine.runner import FlexibleRunner, Runner

from amn_masking.adapters.mmpretrain.runner import collate, resume
from amn_masking.adapters.mmpretrain.runner.clipping import clip_by_own_norm
from amn_masking.adapters.mmpretrain.runner.numbers_hook import NumbersHook
from amn_masking.adapters.mmpretrain.runner.pictures_hook import unwrapped
from amn_masking.adapters.mmpretrain.runner.schedules_hook import SchedulesHook


@functools.cache
def install() -> None:
    """For the rest of the process, and for models with ``masking=`` only:

    - checkpoints are read with torch's ``weights_only``, and a resume is refused from what is not
      a run of the same model (:mod:`.resume`);
    - before a Runner trains, it gets the hooks that move schedules (:mod:`.schedules_hook`) and
      that log the masks' numbers (:mod:`.numbers_hook`), and its ``clip_grad`` clips the masking
      network by itself (:mod:`.clipping`).

    For all models, mmengine's collate functions then take the mark ``_scope_`` that a config from
    another package puts on them, at which they fail otherwise (:mod:`.collate`).
    """
    collate.install()
    resume.install()
    for cls in (Runner, FlexibleRunner):
        cls.load_or_resume = prepared(cls.load_or_resume)


def prepared(load_or_resume: Callable) -> Callable:
    """A Runner's ``load_or_resume``, which it calls when all is built and before it trains.

    It then gives the Runner of a masked model what the model needs from it, once.
    """

    @functools.wraps(load_or_resume)
    def wrapped(runner: Any, *args: Any, **kwargs: Any) -> Any:
        masked = getattr(unwrapped(runner), "masking", None) is not None
        if masked and not any(isinstance(hook, SchedulesHook) for hook in runner.hooks):
            clip_by_own_norm(runner.optim_wrapper, runner.model)
            runner.register_hook(SchedulesHook())
            runner.register_hook(NumbersHook())
        return load_or_resume(runner, *args, **kwargs)

    return wrapped
