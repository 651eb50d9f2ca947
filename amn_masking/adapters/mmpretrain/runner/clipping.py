"""``clip_grad`` for two networks that share an optimizer."""

from __future__ import annotations

from typing import Any

from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from amn_masking.strategies import MaskingStrategy


def clip_by_own_norm(wrapper: Any, model: nn.Module) -> None:
    """Let ``clip_grad`` clip the masking network by itself.

    It scales all gradients of an optimizer by their common norm. The masking network's gradient
    ascends, and nothing in the autoencoder's loss keeps it small: in one norm with the
    autoencoder's it would slow the autoencoder down whenever it is large. So each of the two is
    clipped to ``max_norm`` by its own norm, and ``grad_norm`` in the log is the autoencoder's.
    """
    masking = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, MaskingStrategy)
        for parameter in module.parameters()
    }
    if not masking or not isinstance(wrapper, OptimWrapper):
        return
    # With paramwise_cfg the groups are ConfigDicts, at which torch.compile fails.
    wrapper.optimizer.param_groups[:] = map(dict, wrapper.optimizer.param_groups)
    if wrapper.clip_grad_kwargs:
        clip = wrapper.clip_func  # torch's clip_grad_norm_ or clip_grad_value_

        def clip_apart(parameters: list[Tensor], **options: Any) -> Any:
            clip([p for p in parameters if id(p) in masking], **options)
            return clip([p for p in parameters if id(p) not in masking], **options)

        # After AMP's unscaling and gradient accumulation: the wrapper calls it for the step.
        wrapper.clip_func = clip_apart
