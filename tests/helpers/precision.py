"""The precisions that a masking network may be in on this CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st


def convolves(dtype: torch.dtype) -> bool:
    ones = torch.ones(1, 1, 3, 3, dtype=dtype)
    try:
        torch.nn.functional.conv2d(ones, ones)
    except RuntimeError:
        return False
    return True


HALF = pytest.param(
    torch.float16,
    marks=pytest.mark.skipif(
        not convolves(torch.float16),
        reason=f"torch {torch.__version__} has no convolution in float16 on a CPU",
    ),
)
network_dtypes = st.sampled_from(
    [dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if convolves(dtype)]
)
