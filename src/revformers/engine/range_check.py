"""Detection of states and updates that fixed point cannot hold."""

import torch
from torch import Tensor

from revformers.engine.fixed_point import MAXIMUM_MAGNITUDE
from revformers.errors import StateRangeError


class RangeCheck:
    """Collects the magnitudes met in one forward pass, and names the first that is out of range.

    The magnitudes stay on the device until `raise_if_exceeded`, so that a forward pass waits for it once, not at
    every layer.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._extremes: list[Tensor] = []
        self._weights: list[float] = []
        self.largest = 0.0
        """The largest magnitude, once `raise_if_exceeded` has looked."""

    def observe(self, name: str, values: Tensor, weight: float = 1.0) -> None:
        """Note the largest magnitude of weight * `values` (floating dtype, any shape) under `name`."""
        if values.numel() == 0:
            return
        # aminmax is one pass and, unlike Python's max, keeps a NaN.
        self._names.append(name)
        self._extremes.extend(torch.aminmax(values.detach()))
        self._weights.append(abs(weight))

    def raise_if_exceeded(self) -> None:
        """Raise StateRangeError for the first value beyond the range of fixed point; the device is waited for."""
        if not self._extremes:
            return
        device = self._extremes[0].device
        extremes = torch.stack([extreme.to(device, torch.float64) for extreme in self._extremes])
        magnitudes = extremes.view(-1, 2).abs().amax(dim=1).tolist()
        for name, magnitude, weight in zip(self._names, magnitudes, self._weights, strict=True):
            self.largest = max(self.largest, magnitude * weight)
            if not magnitude * weight <= MAXIMUM_MAGNITUDE:
                raise StateRangeError(
                    f"The {name} has magnitude {magnitude * weight:g}; fixed-point states hold finite values up to "
                    f"{MAXIMUM_MAGNITUDE:.0f}. Lower the learning rate or the step size, or clip what grows."
                )
        self._names.clear()
        self._extremes.clear()
        self._weights.clear()
