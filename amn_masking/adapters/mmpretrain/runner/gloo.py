"""Several processes on a machine without GPUs: importing this starts ``gloo``.

``mim train --launcher pytorch --gpus N`` starts N processes, whatever they run on, but mmengine
then binds each to a CUDA device. It leaves a process group alone that is there already. So a config
for CPUs says::

    custom_imports = dict(imports=["amn_masking.adapters.mmpretrain.runner.gloo"])
    model_wrapper_cfg = dict(
        type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
    )

Nothing happens in a single process, where there is a GPU, or where a process group was started.
The launcher (``torchrun``, or mim's ``pytorch``) says who is who by the environment variables
``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``.
"""

from __future__ import annotations

import os

import torch
from torch import distributed

if (
    int(os.environ.get("WORLD_SIZE", 1)) > 1
    and not torch.cuda.is_available()
    and not distributed.is_initialized()
):
    distributed.init_process_group("gloo")
