"""``clip_grad`` for two networks that share an optimizer."""

from __future__ import annotations

from collections.abc import Callable
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

    Args:
        wrapper: the optimizer wrapper, of whatever type and however it was constructed.
        model: what it trains.
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
        # After AMP's unscaling and gradient accumulation: the wrapper calls it for the step.
        wrapper.clip_func = clip_apart(wrapper.clip_func, masking)


def clip_apart(clip: Callable[..., Any], ids: set[int]) -> Callable[..., Any]:
    """``clip``, done to the parameters with these ids and to the others separately.

    Args:
        clip: ``torch.nn.utils.clip_grad_norm_`` or ``clip_grad_value_``.
        ids: by ``id()``.

    Returns:
        A function of the same arguments; its result is that of the others.
    """

    def clip_both(parameters: list[Tensor], **options: Any) -> Any:
        clip([p for p in parameters if id(p) in ids], **options)
        return clip([p for p in parameters if id(p) not in ids], **options)

    return clip_both
