"""Fixed-point numbers: a hidden state x is held as the integer X = x * 2**fraction_bits.

Integer addition has an exact inverse, and floating-point addition does not. For this reason rebuilt gradients equal
stored ones.

A state of 64 bits resolves 2**-30, which is finer than float32 for every |x| above 2**-6; a float32 update of magnitude
2**-7 or more is represented without rounding. A state of 32 bits has a binary point that the model chooses; with 16
fraction bits it resolves 2**-16 and holds values up to 32,512, while bfloat16 resolves 2**-6 at a magnitude of 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

USABLE_SHARE = 1 - 2.0**-7
"""Share of the integers' range that states may fill. The rest covers the rounding of products, and magnitudes that are
read in bfloat16, which may be rounded down by 2**-8 of themselves."""


@dataclass(frozen=True)
class FixedPoint:
    """A format of fixed-point numbers.

    Attributes:
        dtype: the dtype of the integers, torch.int32 or torch.int64.
        fraction_bits: binary digits after the point.

    """

    dtype: torch.dtype
    fraction_bits: int

    def __str__(self) -> str:
        """Return the format in words."""
        return (
            f"{8 * self.dtype.itemsize}-bit integers up to {self.maximum_magnitude:,.0f} with {self.fraction_bits} "
            f"binary digits after the point"
        )

    @property
    def largest_sum(self) -> float:
        """The magnitude that the sum of a step's terms must not exceed, so that no state is ever wrapped."""
        return USABLE_SHARE * 2.0 ** (8 * self.dtype.itemsize - 1 - self.fraction_bits)

    @property
    def maximum_magnitude(self) -> float:
        """Largest |x| of a state or an update.

        64 bits: 2**22, about 4.2 million. Times 2**30 and the largest coefficient term (1024, `dynamics.base.
        LARGEST_TERM`) that is 2**62, so that no intermediate product leaves the range. 32 bits: all of the range, as
        their products are computed in 64 bits.
        """
        return min(self.largest_sum, 2.0**22)

    def quantise(self, values: Tensor, weight: float = 1.0) -> Tensor:
        """Return `weight * values` in fixed point, rounded towards zero.

        Args:
            values: any shape, floating dtype. float64 is scaled in float64, every other dtype in float32.
            weight: a finite number to multiply by.

        Returns:
            Integers of the same shape.

        """
        wide = values if values.dtype == torch.float64 else values.to(torch.float32)
        scale = weight * 2.0**self.fraction_bits
        # A copy that `to` made is ours to overwrite; the caller's own tensor is not.
        scaled = wide * scale if wide is values else wide.mul_(scale)
        return scaled.to(self.dtype)


INT64 = FixedPoint(torch.int64, 30)


def read_into(states: Tensor, values: Tensor, fraction_bits: int) -> None:
    """Write the numbers that `states` (integers, any shape) holds to `values`, rounded to the dtype of `values`."""
    if values.dtype in (torch.float32, torch.float64):
        values.copy_(states).mul_(2.0**-fraction_bits)
    else:
        values.copy_(states.to(torch.float32).mul_(2.0**-fraction_bits))
