"""The midpoint rule blended with the ordinary residual step."""

import math
import random
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from revformers.dynamics.base import (
    LARGEST_DENOMINATOR,
    LARGEST_TERM,
    ONE,
    Coefficients,
    Dynamics,
    Granularity,
    Readout,
    Start,
    finite_step,
    times,
)

_WRITTEN = re.compile(r"[^e]{1,40}(e[-+]?\d{1,3})?", re.IGNORECASE)
"""The texts that are read as fractions. `Fraction` computes every digit of a number such as "1e99999999"."""


@dataclass(frozen=True)
class BlendedMidpoint(Dynamics):
    """p[l+1] = a p[l-1] + (1 - a) p[l] + h f_l(p[l]) (arXiv 2512.02056, equation 3.6).

    A blend near 0 is close to the ordinary network and needs side information, ceil(log2(ceil(1/|a|))) bits per element
    and step; |a| >= 1 needs none. Blends are exact fractions: a float is rounded to the nearest fraction with a
    denominator of at most 256, and the attribute holds that fraction.

    Attributes:
        blend: a, one number for all layers, or a sequence with one number per layer; never 0. None if and only if
            `random_seed` is given.
        step_size: h, the weight of the update, one number for all layers, or a sequence with one number per layer.
        random_seed: draws a = +1 or -1, plus U(-1/2, 1/2), once per layer, as the paper does; see `random`.
        granularity: ``"block"``: one step per block; ``"branch"``: two, attention then MLP.
        start: p[-1], the state before the embedding p[0]: ``"repeat"`` sets it to p[0], ``"zero"`` to 0.
        readout: the input of the head: ``"last"``: p[L], ``"mean"``: (p[L-1] + p[L]) / 2.

    """

    blend: Fraction | tuple[Fraction, ...] | None = None
    step_size: float | tuple[float, ...] = 1.0
    random_seed: int | None = None

    name = "blended_midpoint"

    def __init__(
        self,
        blend: float | Fraction | str | Sequence[float | Fraction | str] | None = None,
        step_size: float | Sequence[float] = 1.0,
        *,
        random_seed: int | None = None,
        granularity: Granularity = "block",
        start: Start = "repeat",
        readout: Readout = "last",
    ) -> None:
        owner = type(self).__name__
        if (blend is None) == (random_seed is None):
            raise ValueError(f"{owner} takes either a blend or a random_seed; give exactly one of them.")
        if random_seed is not None and (isinstance(random_seed, bool) or not isinstance(random_seed, int)):
            raise ValueError(f"{owner} takes a whole number as random_seed, not {random_seed!r}.")
        exact: Fraction | tuple[Fraction, ...] | None = None
        if isinstance(blend, Sequence) and not isinstance(blend, str):
            exact = tuple(exact_blend(value) for value in blend)
            if not exact:
                raise ValueError(f"{owner} was given an empty sequence of blends; give one per layer.")
        elif blend is not None:
            exact = exact_blend(blend)
        object.__setattr__(self, "blend", exact)
        steps = (
            tuple(finite_step(owner, value) for value in step_size)
            if isinstance(step_size, Sequence) and not isinstance(step_size, str)
            else finite_step(owner, step_size)
        )
        object.__setattr__(self, "step_size", steps)
        object.__setattr__(self, "random_seed", random_seed)
        super().__init__(granularity=granularity, start=start, readout=readout)

    @classmethod
    def random(
        cls,
        seed: int,
        step_size: float = 1.0,
        *,
        granularity: Granularity = "block",
        start: Start = "repeat",
        readout: Readout = "last",
    ) -> "BlendedMidpoint":
        """Draw a = ±1 + U(-1/2, 1/2) per layer, rounded to 1/256; the same seed draws the same blends."""
        return cls(None, step_size, random_seed=seed, granularity=granularity, start=start, readout=readout)

    def layer_blend(self, layer: int) -> Fraction:
        """Return a for layer `layer`, an exact fraction."""
        if self.random_seed is not None:
            # One generator per layer, so that a layer's blend does not depend on the order of calls.
            generator = random.Random(f"revformers blend {self.random_seed} {layer}")
            drawn = generator.choice((-1, 1)) + generator.uniform(-0.5, 0.5)
            return Fraction(round(drawn * LARGEST_DENOMINATOR), LARGEST_DENOMINATOR)
        if isinstance(self.blend, tuple):
            if not 0 <= layer < len(self.blend):
                raise ValueError(
                    f"{type(self).__name__} has {len(self.blend)} blends, none of them for layer {layer}; give one per "
                    f"layer."
                )
            return self.blend[layer]
        assert self.blend is not None
        return self.blend

    def layer_step_size(self, layer: int) -> float:
        """Return h for layer `layer`."""
        return float(self.step_size[layer] if isinstance(self.step_size, tuple) else self.step_size)

    def check(self, number_of_layers: int) -> None:
        """Raise ValueError if a sequence of blends or step sizes does not have one number per layer."""
        for what, values in (("blends", self.blend), ("step sizes", self.step_size)):
            if isinstance(values, tuple) and len(values) != number_of_layers:
                raise ValueError(
                    f"{type(self).__name__} was given {len(values)} {what} for a model of {number_of_layers} layers; "
                    f"give one number, or one per layer."
                )
        super().check(number_of_layers)

    def coefficients(self, layer: int) -> Coefficients:
        """Return a, b = 1 - a and c = h for layer `layer`."""
        blend = self.layer_blend(layer)
        return Coefficients(previous=blend, current=ONE - blend, update=self.layer_step_size(layer))

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        update = "h f(p[l])" if isinstance(self.step_size, tuple) else times(self.step_size, "f(p[l])")
        if isinstance(self.blend, Fraction):
            return f"p[l+1] = {times(self.blend, 'p[l-1]')} + {times(ONE - self.blend, 'p[l]')} + {update}"
        origin = "±1 + U(-1/2, 1/2)" if self.blend is None else "given per layer"
        return f"p[l+1] = a p[l-1] + (1 - a) p[l] + {update}, a {origin}"


def exact_blend(value: float | Fraction | str) -> Fraction:
    """Convert one blend, e.g. 0.25 or "1/4", to a fraction; raise ValueError for 0, non-finite or unreadable values."""
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction | str):
        raise ValueError(f"A blend is a number, not {value!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"A blend must be finite, not {value}.")
    try:
        if isinstance(value, str) and not _WRITTEN.fullmatch(value):
            raise ValueError
        exact = Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"A blend is a number or a fraction such as '1/4', not {reprlib.repr(value)}.") from None
    if isinstance(value, float):
        exact = exact.limit_denominator(LARGEST_DENOMINATOR)
    if not exact:
        raise ValueError(
            f"A blend of {value} is 0 in fractions of 256, which has no inverse; the smallest blend is "
            f"1/{LARGEST_DENOMINATOR}, and the ordinary network is Residual()."
        )
    if abs(exact) > LARGEST_TERM:
        raise ValueError(f"A blend is at most {LARGEST_TERM} in magnitude; {reprlib.repr(value)} is not.")
    if exact.denominator > LARGEST_DENOMINATOR:
        raise ValueError(
            f"The blend {exact} has a denominator beyond {LARGEST_DENOMINATOR}; choose a coarser fraction."
        )
    return exact
