"""Detection of states and updates that fixed point cannot hold."""

import torch
from torch import Tensor

from revformers.errors import StateRangeError
from revformers.exact.fixed_point import MAXIMUM_MAGNITUDE


class RangeCheck:
    """Collects the magnitudes met in one forward pass, and names the first that is out of range.

    The magnitudes stay on the device until `raise_if_exceeded`, so that a forward pass waits for it once, not at
    every layer.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._extremes: list[Tensor] = []

    def observe(self, name: str, values: Tensor, weight: float = 1.0) -> None:
        """Note the largest magnitude of weight * `values` (floating dtype, any shape) under `name`."""
        if values.numel() == 0:
            return
        # aminmax is one pass and, unlike Python's max, keeps a NaN.
        self._names.append(name)
        self._extremes.append(torch.stack(torch.aminmax(values.detach())).to(torch.float64).mul_(weight))

    def raise_if_exceeded(self) -> None:
        """Raise StateRangeError for the first value beyond the range of fixed point; the device is waited for."""
        if not self._extremes:
            return
        device = self._extremes[0].device
        magnitudes = torch.stack([extremes.to(device) for extremes in self._extremes]).abs().amax(dim=1).tolist()
        for name, magnitude in zip(self._names, magnitudes, strict=True):
            if not magnitude <= MAXIMUM_MAGNITUDE:
                raise StateRangeError(
                    f"The {name} has magnitude {magnitude:g}; fixed-point states hold finite values up to "
                    f"{MAXIMUM_MAGNITUDE:.0f}. Lower the learning rate or the step size, or clip what grows."
                )
        self._names.clear()
        self._extremes.clear()
