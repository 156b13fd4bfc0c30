"""The dtype in which the gradients of the states are summed."""

from collections.abc import Sequence

import torch

from revformers.dynamics.base import Coefficients


def gradient_dtype(dtype: torch.dtype, steps: Sequence[Coefficients]) -> torch.dtype:
    """Return the dtype of the gradients of states that layers read in `dtype`.

    Two of them are alive while a layer is differentiated: that of p[l+1], and what p[l] has received so far. The
    ordinary network sums the gradient of its stream in the stream's dtype. In bfloat16 this adds less to the error of
    the whole gradient than the layers' own arithmetic, here as well (`lab.studies.stream_gradients`). If |b| > 1, as in
    leapfrog, a step subtracts gradients that are nearly equal; if |a| > 1, a part of the gradient grows from layer to
    layer, and cancels in the end. Both amplify rounding, so gradients are summed in float32 then. So are those of
    float16, whose range is small.

    Args:
        dtype: the compute dtype.
        steps: a, b and c of every step.

    """
    if dtype == torch.bfloat16 and all(max(abs(step.previous), abs(step.current)) <= 1 for step in steps):
        return dtype
    return torch.promote_types(dtype, torch.float32)
