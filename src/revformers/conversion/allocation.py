"""Where to spend a budget of side information: one blend a layer, by what each costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from revformers.conversion.measure import mean_divergence, next_token_distributions
from revformers.dynamics.base import ONE, ZERO, Coefficients, Dynamics
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.hf.state import require_reversible, update_predictors

MAXIMUM_BITS = 8
MEASURED_BITS = (0, 1, 2)
"""Budgets whose cost is measured; every further bit halves the blend and with it what is lost, which divides the
divergence, a square, by four."""


def uniform_blends(bits: float, number_of_layers: int) -> list[Fraction]:
    """Return one blend a layer, 2**-k each, whose side information is `bits` bits an element in the mean.

    Fractions are met by spreading layers of one bit more evenly over the depth.

    Raises:
        ValueError: for a budget outside 0 to 8.

    """
    check_budget(bits)
    cumulative = [math.floor(bits * layer + 0.5) for layer in range(number_of_layers + 1)]
    return [Fraction(1, 2 ** (cumulative[layer + 1] - cumulative[layer])) for layer in range(number_of_layers)]


def check_budget(bits: float) -> None:
    """Raise ValueError for a budget outside 0 to 8 bits."""
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 0 <= bits <= MAXIMUM_BITS:
        raise ValueError(f"A budget of side information is a number of bits from 0 to {MAXIMUM_BITS}, not {bits!r}.")


@dataclass(frozen=True)
class BlendCosts:
    """What every blend costs in every layer, the other layers being ordinary.

    Attributes:
        divergence: for each layer a blend's cost by the blend, mean KL divergence of the ordinary network's
            distribution of the next token, nats a token.

    """

    divergence: tuple[Mapping[Fraction, float], ...]

    def choose(self, bits: float) -> list[Fraction]:
        """Return the blends with the smallest sum of costs whose side information is at most `bits` in the mean.

        A knapsack with whole-numbered sizes, solved exactly by dynamic programming over the layers.

        Raises:
            ValueError: for a budget outside 0 to 8.

        """
        check_budget(bits)
        capacity = math.floor(bits * len(self.divergence) + 1e-9)
        best = [0.0] * (capacity + 1)
        choices: list[list[Fraction]] = []
        for costs in self.divergence:
            options = _cheapest_by_bits(costs)
            row = []
            after = []
            for budget in range(capacity + 1):
                cost, blend = min(
                    (best[budget - size] + cost, blend) for size, (cost, blend) in options.items() if size <= budget
                )
                after.append(cost)
                row.append(blend)
            best = after
            choices.append(row)
        blends = []
        budget = capacity
        for row in reversed(choices):
            blends.append(row[budget])
            budget -= _bits(row[budget])
        return blends[::-1]

    def predicted(self, blends: Sequence[Fraction]) -> float:
        """Return the sum of what `blends`, one per layer, cost one by one: nats a token."""
        return sum(costs[blend] for costs, blend in zip(self.divergence, blends, strict=True))


@torch.no_grad()
def measure_blend_costs(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], progress: Callable[[int], None] = lambda layer: None
) -> BlendCosts:
    """Measure what each blend costs in each layer, both signs, with the model's update predictors if it has any.

    The cost of `MEASURED_BITS` is measured with the other layers at the ordinary step; that of finer blends follows.

    Args:
        model: a reversible model. Its predictors, if any, must be fitted to the ordinary trajectory with a = 1. Its
            dynamics and the scale of its predictors are as before when this returns.
        batches: text to measure on, e.g. ``{"input_ids": int64[batch, tokens]}``; every layer is measured six times.
        progress: called with each layer's number when it is measured.

    """
    stack, predictors = require_reversible(model), update_predictors(model)
    dynamics = stack.dynamics
    try:
        stack.dynamics = _OneBlendedLayer(layer=-1, blend=ONE)
        _scale(predictors, -1, 0.0)
        original = [next_token_distributions(model, batch) for batch in batches]
        table = []
        for layer in range(stack.number_of_layers):
            costs: dict[Fraction, float] = {}
            for sign in (1, -1):
                for bits in MEASURED_BITS:
                    blend = Fraction(sign, 2**bits)
                    stack.dynamics = _OneBlendedLayer(
                        layer=layer, blend=blend, two_evaluations=bool(dynamics.previous_update(layer))
                    )
                    _scale(predictors, layer, float(blend))
                    costs[blend] = mean_divergence(model, batches, original)
                finest = costs[Fraction(sign, 2 ** MEASURED_BITS[-1])]
                for bits in range(MEASURED_BITS[-1] + 1, MAXIMUM_BITS + 1):
                    costs[Fraction(sign, 2**bits)] = finest / 4 ** (bits - MEASURED_BITS[-1])
            table.append(costs)
            progress(layer)
        return BlendCosts(tuple(table))
    finally:
        stack.dynamics = dynamics
        _scale(predictors, None, 1.0)


@dataclass(frozen=True, kw_only=True)
class _OneBlendedLayer(Dynamics):
    """The ordinary step in every layer but one, which is blended: for measurements, without an inverse."""

    layer: int
    blend: Fraction
    two_evaluations: bool = False

    name = "one_blended_layer"
    reversible = False

    def coefficients(self, layer: int) -> Coefficients:
        return BlendedMidpoint(self.blend).coefficients(layer) if layer == self.layer else Coefficients(ZERO, ONE, 1.0)

    def previous_update(self, layer: int) -> float:
        return float(self.blend) if self.two_evaluations and layer == self.layer else 0.0

    @property
    def recurrence(self) -> str:
        return f"layer {self.layer} blended by {self.blend}"


def _scale(predictors: Sequence[nn.Module], layer: int | None, scale: float) -> None:
    """Give the predictor of `layer` a scale and silence the others; None gives it to all."""
    for index, predictor in enumerate(predictors):
        predictor.scale = scale if layer in (None, index) else 0.0  # type: ignore[assignment]


def _bits(blend: Fraction) -> int:
    return Coefficients(blend, ONE - blend, 1.0).side_information_bits


def _cheapest_by_bits(costs: Mapping[Fraction, float]) -> dict[int, tuple[float, Fraction]]:
    """Return for each number of bits the cheapest blend and its cost."""
    options: dict[int, tuple[float, Fraction]] = {}
    for blend, cost in costs.items():
        size = _bits(blend)
        if size not in options or cost < options[size][0]:
            options[size] = (cost, blend)
    return options
