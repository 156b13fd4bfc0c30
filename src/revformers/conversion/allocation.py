"""Allocation of side information to layers: the blend of each layer, from a budget of bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAXIMUM_BITS = 8

USUAL_BITS = 2
"""The default budget: the fewest bits that kept the loss of a real model within 1%."""


def uniform_blends(bits: float, number_of_layers: int) -> list[Fraction]:
    """Return one blend per layer, each 2**-k, whose side information averages `bits` bits per element.

    For a fractional budget, layers with one bit more are spread evenly over the depth.

    Raises:
        ValueError: for a budget outside 0 to 8.

    """
    check_budget(bits)
    cumulative = [math.floor(bits * layer + 0.5) for layer in range(number_of_layers + 1)]
    return [_blend(cumulative[layer + 1] - cumulative[layer]) for layer in range(number_of_layers)]


def check_budget(bits: float) -> None:
    """Raise ValueError for a budget outside 0 to 8 bits."""
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 0 <= bits <= MAXIMUM_BITS:
        raise ValueError(f"A budget of side information is a number of bits from 0 to {MAXIMUM_BITS}, not {bits!r}.")


@dataclass(frozen=True)
class LayerCosts:
    """The cost of every layer's blend.

    The error of a layer's step is proportional to its blend a, and the divergence from the original to the square of
    the error, so every bit leaves a quarter of the cost. Only a = 1 is not compensated (`dynamics.compensation`): its
    error stays in the stream, whereas the error of other blends is read by one layer only.

    Attributes:
        read: for each layer the mean KL divergence from the original's next-token distribution that a = 1 in this
            layer alone would cause if it were compensated: nats per token, to second order in the error.
        kept: the same for an error that stays in the stream. Where it is smaller than `read`, `read` is used instead.

    """

    read: tuple[float, ...]
    kept: tuple[float, ...]

    def choose(self, bits: float) -> list[Fraction]:
        """Return the blends 2**-k with the smallest sum of costs that use at most `bits` bits on average.

        Each bit goes to the layer where it saves most. The savings of a layer's bits decrease from one bit to the next,
        so no other choice of as many bits costs less. Layers without costs, such as the first, get no bits.

        Raises:
            ValueError: for a budget outside 0 to 8.

        """
        check_budget(bits)
        spent = [0] * len(self.read)
        for _ in range(math.floor(bits * len(spent) + 1e-9)):
            saved = [
                self._cost(layer, number) - self._cost(layer, number + 1) if number < MAXIMUM_BITS else 0.0
                for layer, number in enumerate(spent)
            ]
            best = max(range(len(saved)), key=saved.__getitem__)
            if not saved[best]:
                break
            spent[best] += 1
        return [_blend(number) for number in spent]

    def predicted(self, blends: Sequence[Fraction]) -> float:
        """Return the sum of the separate costs of `blends`, one per layer and each 2**-k, in nats per token."""
        return sum(self._cost(layer, blend.denominator.bit_length() - 1) for layer, blend in enumerate(blends))

    @property
    def lead_parts(self) -> list[float]:
        """For each layer the part of its lead (`dynamics.compensation.leads`) that is worth its cost.

        A lead is an error that the layer reads. The part of an error that no lead makes up for stays in the stream,
        unless a later predictor corrects it. With the part c of the lead both errors cost c^2 read + (1 - c)^2 kept,
        which is smallest at c = kept / (read + kept). Without predictors the whole lead is worth its cost.
        """
        return [kept / (read + kept) if read + kept else 0.0 for read, kept in zip(self.read, self.kept, strict=True)]

    def _cost(self, layer: int, bits: int) -> float:
        read = self.read[layer]
        return read / 4**bits if bits else max(read, self.kept[layer])


def _blend(bits: int) -> Fraction:
    return Fraction(1, 2**bits)
