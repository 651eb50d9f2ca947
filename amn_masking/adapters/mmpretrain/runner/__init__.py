"""What stands around the steps of a masked model in mmengine's Runner.

Importing this changes nothing. What mmengine offers no other place for is put in its place by
:func:`install`, when the first model of this package's classes is built, and acts for them only.
"""

from __future__ import annotations

import functools


@functools.cache
def install() -> None:
    """For the rest of the process, and for models of these classes only:

    - ``clip_grad`` clips the masking network by itself (:mod:`.clipping`);
    - checkpoints are read with torch's ``weights_only``, and a resume is refused from what is not
      a run of the same model (:mod:`.resume`).

    For all models, mmengine's collate functions then take the mark ``_scope_`` that a config from
    another package puts on them, at which they fail otherwise (:mod:`.collate`).
    """
    from amn_masking.adapters.mmpretrain.runner import clipping, collate, resume

    clipping.install()
    collate.install()
    resume.install()
