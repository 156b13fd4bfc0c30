"""Fixed-point numbers: a hidden state x is held as the 64-bit integer X = x * 2**30.

Integer addition has an exact inverse, and floating-point addition does not. For this reason rebuilt gradients equal
stored ones. 2**-30 is finer than float32 for every |x| above 2**-6, and a float32 update of magnitude 2**-7 or more is
represented without rounding.
"""

import torch
from torch import Tensor

FRACTION_BITS = 30
"""Binary digits after the point."""

MAXIMUM_MAGNITUDE = 2.0**22
"""Largest |x| of a state or an update, about 4.2 million.

2**22 * 2**30 times the largest coefficient term (1024, `dynamics.base.LARGEST_TERM`) is 2**62: no intermediate product
of a step leaves the 64-bit range, so a state within this magnitude is never wrapped.
"""


def quantise(values: Tensor, weight: float = 1.0) -> Tensor:
    """Return `weight * values` in fixed point, rounded towards zero.

    Args:
        values: any shape, floating dtype. float64 is scaled in float64, every other dtype in float32.
        weight: a finite number to multiply by.

    Returns:
        int64 of the same shape.

    """
    wide = values if values.dtype == torch.float64 else values.to(torch.float32)
    scale = weight * 2.0**FRACTION_BITS
    # A copy that `to` made is ours to overwrite; the caller's own tensor is not.
    scaled = wide * scale if wide is values else wide.mul_(scale)
    return scaled.to(torch.int64)


def read_into(states: Tensor, values: Tensor) -> None:
    """Write the numbers that `states` (int64, any shape) holds to `values`, rounded to the dtype of `values`."""
    if values.dtype in (torch.float32, torch.float64):
        values.copy_(states).mul_(2.0**-FRACTION_BITS)
    else:
        values.copy_(states.to(torch.float32).mul_(2.0**-FRACTION_BITS))
