"""How side information is spent over the layers: the blend of each layer, from a budget of bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAXIMUM_BITS = 8


def uniform_blends(bits: float, number_of_layers: int) -> list[Fraction]:
    """Return one blend a layer, 2**-k each, whose side information is `bits` bits an element in the mean.

    Fractions are met by spreading layers of one bit more evenly over the depth.

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
    """What the blend of every layer costs.

    The error of a layer's step is in proportion to its blend a, and the divergence from the original to the square of
    the error: a blend a costs a^2 of what a = 1 costs, and every bit a quarter of what is left.

    Attributes:
        divergence: for each layer the mean KL divergence of the original's distribution of the next token that a = 1
            there would cause alone, nats a token, to second order in the error.

    """

    divergence: tuple[float, ...]

    def choose(self, bits: float) -> list[Fraction]:
        """Return the blends 2**-k with the smallest sum of costs that take at most `bits` bits in the mean.

        Each bit goes to the layer where it saves most. What a layer's next bit saves only falls, so that no other
        choice of as many bits costs less. Layers that cost nothing, as the first, get no bits.

        Raises:
            ValueError: for a budget outside 0 to 8.

        """
        check_budget(bits)
        spent = [0] * len(self.divergence)
        for _ in range(math.floor(bits * len(spent) + 1e-9)):
            left = [
                cost / 4**number if number < MAXIMUM_BITS else 0.0
                for cost, number in zip(self.divergence, spent, strict=True)
            ]
            dearest = max(range(len(left)), key=left.__getitem__)
            if not left[dearest]:
                break
            spent[dearest] += 1
        return [_blend(number) for number in spent]

    def predicted(self, blends: Sequence[Fraction]) -> float:
        """Return the sum of what `blends`, one per layer, cost one by one: nats a token."""
        return sum(float(blend) ** 2 * cost for blend, cost in zip(blends, self.divergence, strict=True))


def _blend(bits: int) -> Fraction:
    return Fraction(1, 2**bits)
