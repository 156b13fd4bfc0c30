"""The base class of dynamics: three coefficients per layer, the state before the embedding, and the readout."""

import dataclasses
import math
import reprlib
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

LARGEST_DENOMINATOR = 256
"""Largest denominator of a blend. The finest, 1/256, needs eight bits of side information per element."""

LARGEST_TERM = 1024
"""Largest numerator or denominator. With the magnitudes of 64-bit states, every product fits into 64 bits; products of
32-bit states by fractions are taken in 64 bits."""

Granularity = Literal["block", "branch"]
Start = Literal["repeat", "zero"]
Readout = Literal["last", "mean"]


@dataclass(frozen=True)
class Coefficients:
    """One step of the recurrence p[l+1] = a p[l-1] + b p[l] + c f(p[l]).

    Attributes:
        previous: a, exact. Zero only in the ordinary residual network, which has no inverse.
        current: b, exact.
        update: c, a float. It need not be exact, because the inverse subtracts the same rounded product.

    """

    previous: Fraction
    current: Fraction
    update: float

    def __post_init__(self) -> None:
        for name in ("previous", "current"):
            value = getattr(self, name)
            if not isinstance(value, Fraction):
                raise TypeError(
                    f"The coefficient of the {name} state is an exact fraction, such as Fraction(1, 2), not {value!r}."
                )
            if max(abs(value.numerator), value.denominator) > LARGEST_TERM:
                raise ValueError(
                    f"The coefficient {value} of the {name} state has a term beyond {LARGEST_TERM}, by which 64-bit "
                    f"states cannot be multiplied exactly; choose a fraction with smaller terms."
                )

        if self.previous.denominator > LARGEST_DENOMINATOR:
            raise ValueError(
                f"The coefficient {self.previous} of the previous state has a denominator beyond "
                f"{LARGEST_DENOMINATOR}, so its remainders do not fit into a byte; choose a coarser fraction."
            )
        if isinstance(self.update, bool) or not isinstance(self.update, Real):
            raise TypeError(f"The coefficient of the update is a number, such as 1.0, not {self.update!r}.")
        if not math.isfinite(self.update):
            raise ValueError(f"The coefficient of the update is {self.update}; choose a finite number.")
        object.__setattr__(self, "update", float(self.update))

    @property
    def side_information_bits(self) -> int:
        """Side information that the inverse of this step needs, bits per element: ceil(log2(ceil(1/|a|)))."""
        if not self.previous:
            raise ValueError("A step with coefficient 0 forgets the previous state and cannot be undone.")
        return (math.ceil(1 / abs(self.previous)) - 1).bit_length()


@dataclass(frozen=True, kw_only=True)
class Dynamics(ABC):
    """A recurrence p[l+1] = a p[l-1] + b p[l] + c f_l(p[l]) that replaces p[l+1] = p[l] + f_l(p[l]).

    A dynamics holds coefficients only and processes no tensors. The paper is *Reversing Large Language Models for
    Efficient Training and Fine-Tuning* (arXiv 2512.02056), which does not specify `start` and `readout`.

    Attributes:
        granularity: ``"block"``: one step per transformer block, f = attention and MLP together; ``"branch"``: two
            steps, attention then MLP, so that only one branch is rebuilt at a time.
        start: p[-1], the state before the embedding p[0]: ``"repeat"`` sets it to p[0], ``"zero"`` to 0.
        readout: the input of the final norm and the head: ``"last"``: p[L], ``"mean"``: (p[L-1] + p[L]) / 2.

    """

    granularity: Granularity = "block"
    start: Start = "repeat"
    readout: Readout = "last"

    name: ClassVar[str]
    """The name in recipes and saved models."""

    reversible: ClassVar[bool] = True
    """Whether every step has an inverse."""

    evaluations_per_step: ClassVar[int] = 1
    """2 if a step also evaluates the layer before; see `previous_update`. Update predictors require 1."""

    def __post_init__(self) -> None:
        for option, choices in (("granularity", Granularity), ("start", Start), ("readout", Readout)):
            if getattr(self, option) not in get_args(choices):
                raise ValueError(
                    f"{type(self).__name__} has no {option} {getattr(self, option)!r}; choose one of "
                    f"{', '.join(map(repr, get_args(choices)))}."
                )

    @abstractmethod
    def coefficients(self, layer: int) -> Coefficients:
        """Return the coefficients of each step of layer `layer`, counted from 0."""

    @property
    def steps_per_layer(self) -> int:
        """Number of steps per layer: 1 by block, 2 by branch."""
        return 2 if self.granularity == "branch" else 1

    def steps(self, number_of_layers: int) -> list[Coefficients]:
        """Return the coefficients of all steps in a stack of `number_of_layers` layers, in order."""
        return [self.coefficients(layer) for layer in range(number_of_layers) for _ in range(self.steps_per_layer)]

    def check(self, number_of_layers: int) -> None:
        """Raise an error if this dynamics does not fit a stack of `number_of_layers` layers.

        Raises:
            TypeError: if `coefficients` returns something else than coefficients.
            ValueError: if it has no inverse, or the first layer reads the update of a layer before it.

        """
        for layer in range(number_of_layers):
            coefficients = self.coefficients(layer)
            if not isinstance(coefficients, Coefficients):
                raise TypeError(
                    f"{type(self).__name__}.coefficients returns {coefficients!r} for layer {layer}; return "
                    f"revformers.dynamics.Coefficients(previous, current, update)."
                )
            if self.reversible and not coefficients.previous:
                raise ValueError(
                    f"{type(self).__name__} forgets the previous state in layer {layer}, where a = 0, and so has no "
                    f"inverse; choose another coefficient, or set reversible = False in the class."
                )
        if self.previous_update(0):
            raise ValueError(
                f"{type(self).__name__}.previous_update returns {self.previous_update(0)} for layer 0, which has no "
                f"layer before it; return 0.0 there."
            )

    def previous_update(self, layer: int) -> float:
        """Return the weight of f_{l-1}(p[l]), which dynamics with two evaluations per step add to c f_l(p[l])."""
        return 0.0

    def side_information_bits(self, layer: int) -> int:
        """Return the side information that each step of layer `layer` keeps for its inverse, bits per element."""
        return self.coefficients(layer).side_information_bits

    def mean_side_information_bits(self, number_of_layers: int) -> float:
        """Return the mean of `side_information_bits` over a stack of `number_of_layers` layers."""
        return sum(map(self.side_information_bits, range(number_of_layers))) / number_of_layers

    @property
    @abstractmethod
    def recurrence(self) -> str:
        """The recurrence with its numbers, in one line of plain text."""

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the options, in types that JSON supports; `dynamics.from_dict` reads them back."""
        options = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"name": self.name, **options}


def _plain(value: Any) -> Any:
    """Convert fractions to strings such as "1/4" and tuples to lists, because JSON has neither."""
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def finite_step(owner: str, step_size: float) -> float:
    """Return `step_size` if it is a positive finite number; otherwise raise ValueError, which names `owner`."""
    if isinstance(step_size, bool) or not isinstance(step_size, int | float | Fraction):
        raise ValueError(f"{owner} takes a number as step_size, not {step_size!r}.")
    # Not math.isfinite, which cannot read a whole number beyond the largest float.
    if not 0 < step_size <= sys.float_info.max:
        raise ValueError(f"{owner} takes a positive finite step_size, not {reprlib.repr(step_size)}.")
    return step_size


def times(factor: Fraction | float, term: str) -> str:
    """Return `factor` times `term` as text, e.g. "3/4 p[l]"; a factor of 1 is omitted."""
    return term if factor == 1 else f"{factor if isinstance(factor, Fraction) else format(factor, 'g')} {term}"


ONE = Fraction(1)
ZERO = Fraction(0)
