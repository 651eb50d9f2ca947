"""``clip_grad`` for two networks that share an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn

from amn_masking.strategies import MaskingStrategy


class MaskingOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor of optimizer wrappers, with the masking network clipped by itself.

    ``clip_grad`` scales all gradients of an optimizer by their common norm. The masking network's
    gradient ascends, and nothing in the autoencoder's loss keeps it small: in one norm with the
    autoencoder's it would slow the autoencoder down whenever it is large. So each of the two is
    clipped to ``max_norm`` by its own norm, and ``grad_norm`` in the log is the autoencoder's.

    It stands in for ``DefaultOptimWrapperConstructor`` in mmpretrain's registry, so that a config
    needs no change. Where a model has no masking network it is the stock one. It is the one place
    that sees both the model and the optimizer wrapper, of whatever type, under every runner.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        wrapper = super().__call__(model)
        masking = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, MaskingStrategy)
            for parameter in module.parameters()
        }
        if not masking:
            return wrapper
        # With paramwise_cfg the groups are ConfigDicts, at which torch.compile fails.
        wrapper.optimizer.param_groups[:] = map(dict, wrapper.optimizer.param_groups)
        if wrapper.clip_grad_kwargs:
            # After AMP's unscaling and gradient accumulation: the wrapper calls it for the step.
            wrapper.clip_func = clip_apart(wrapper.clip_func, masking)
        return wrapper


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


def install() -> None:
    """Let mmpretrain's registry build this one by the name of mmengine's."""
    name = "DefaultOptimWrapperConstructor"
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(name=name, module=MaskingOptimWrapperConstructor)
