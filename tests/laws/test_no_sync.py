"""A training step reads nothing back from the device: on fake CUDA tensors, which have no values,
so that any read (``.item()``, ``bool()``, ``nonzero``) is an error and needs no GPU to show. The
first step alone may: there a learning strategy looks at the images and at its scores, and the
method proves that the mask is used, once.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs the extra 'mmpretrain' or 'onedl'")

from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amn_masking import AdversarialMasking
from tests.helpers.small_mae import build, config

FIXED_COUNTS = {
    "random": dict(type="RandomMasking"),
    "block": dict(type="BlockMasking", min_patches=2),
    "color noise": dict(type="ColorNoiseMasking"),
    "hard patches": dict(type="HardPatchMasking"),
    "attention": dict(type="AttentionMasking", hint_share=0.3),
    "shuffled": dict(
        type="ShuffledMasking", masking=dict(type="AdversarialMasking", random_share=0.0)
    ),
    "oracle": dict(type="OracleMasking"),
    **{
        estimator: dict(
            type="AdversarialMasking", estimator=dict(type=estimator), random_share=0.25
        )
        for estimator in ("straight_through", "gumbel", "inclusion", "score_function", "ranking")
    },
    "variance": dict(
        type="AdversarialMasking",
        reward="variance_normalised",
        entropy_weight=0.1,
        random_share=0.0,
    ),
    "left out, random": dict(type="RandomMasking", prediction_ratio=0.25),
    "left out, block": dict(type="BlockMasking", min_patches=2, prediction_ratio=0.25),
    "left out, learned": dict(type="AdversarialMasking", prediction_ratio=0.25),
}
FREE_COUNTS = {
    kind: dict(
        type="AdversarialMasking",
        threshold=dict(type=kind),
        random_share=0.25,
    )
    for kind in ("mean", "constant", "tracking", "difficulty")
}


class LeavesTheDevice(TorchDispatchMode):
    """Collects the operations that make host tensors of device tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        came, went = (
            {t.device.type for t in tree_leaves(part) if isinstance(t, torch.Tensor)}
            for part in ((args, kwargs), out)
        )
        if "cuda" in came and "cpu" in went:
            self.operations.append(str(function))
        return out


def step_without_values(masking, device: str, backward: bool = False, first: bool = False):
    """The loss of a small MAE with weights and images that have shapes only, and the operations
    that left the device.
    """
    # A reward relative to the variance is refused for targets that are normalised already.
    head = config()["head"] | dict(norm_pix="reward" not in masking)
    model = build(masking=masking, head=head)
    for module in model.modules():
        if isinstance(module, AdversarialMasking):
            module.watch.looked = not first
    model.proved = True  # that the method uses its mask is seen in the first step, too
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    fake = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                    module._parameters[name] = torch.nn.Parameter(fake, weight.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    fake = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
                    module._buffers[name] = fake
        with LeavesTheDevice() as leaves:
            loss = model.loss(torch.empty(3, 3, 32, 32, device=device), [])["loss"]
            if backward:
                loss.backward()
    return loss, leaves.operations


@pytest.mark.parametrize("name", FIXED_COUNTS)
def test_the_forward_pass_reads_nothing_back(name):
    loss, left = step_without_values(FIXED_COUNTS[name], "cuda")
    assert loss.device.type == "cuda"
    assert loss.requires_grad
    assert left == []


@pytest.mark.parametrize("name", FIXED_COUNTS)
def test_nor_does_the_backward_pass(name, monkeypatch):
    # Autograd asks the driver for a stream before it goes backward on CUDA tensors; so this is on
    # the CPU, with the check of the scores that CUDA has.
    for module in ("checks", "watch", "adapters.decoded", "adapters.mmpretrain.mixin"):
        monkeypatch.setattr(f"amn_masking.{module}.is_compiling", lambda: True)
    step_without_values(FIXED_COUNTS[name], "cpu", backward=True)


def test_the_first_step_looks_at_the_images():
    with pytest.raises(DataDependentOutputException):
        step_without_values(FIXED_COUNTS["straight_through"], "cuda", first=True)


@pytest.mark.parametrize("name", FREE_COUNTS)
def test_free_counts_read_their_counts_and_so_these_tests_can_fail(name):
    """How long the longest row is decides the shape of what comes after."""
    with pytest.raises(DataDependentOutputException):
        step_without_values(FREE_COUNTS[name], "cuda")
