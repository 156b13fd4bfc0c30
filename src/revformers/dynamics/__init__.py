"""Time-reversible dynamics. To add one, write a file and add a line to `DYNAMICS`, or call `register`."""

import inspect
from collections.abc import Mapping
from typing import Any

from revformers.dynamics.base import Coefficients, Dynamics
from revformers.dynamics.blended_midpoint import BlendedMidpoint
from revformers.dynamics.hamiltonian import Hamiltonian
from revformers.dynamics.leapfrog import Leapfrog
from revformers.dynamics.midpoint import Midpoint
from revformers.dynamics.residual import Residual
from revformers.dynamics.two_evaluation_midpoint import TwoEvaluationMidpoint
from revformers.registration import add

DYNAMICS: dict[str, type[Dynamics]] = {
    dynamics.name: dynamics
    for dynamics in (Residual, Midpoint, BlendedMidpoint, TwoEvaluationMidpoint, Leapfrog, Hamiltonian)
}


def register(kind: type[Dynamics]) -> type[Dynamics]:
    """Register a dynamics of your own, so that recipes and saved models can name it; usable as a class decorator.

    A model that was saved with it loads only in a process that has registered it.

    Raises:
        TypeError: if `kind` is no class of dynamics, or its name is not a string.
        ValueError: if another dynamics has the same name.

    """
    return add(kind, Dynamics, DYNAMICS)


def create(name: str, /, **options: Any) -> Dynamics:
    """Return the dynamics called `name` with the given options.

    Raises:
        ValueError: if the name or an option is unknown, or a value is invalid.

    """
    if name not in DYNAMICS:
        raise ValueError(
            f"There is no dynamics called {name!r}; choose one of {', '.join(DYNAMICS)}, or import the module that "
            f"registers your own first."
        )
    known = list(inspect.signature(DYNAMICS[name]).parameters)
    for option in options:
        if option not in known:
            raise ValueError(f"The dynamics {name} has no option {option!r}; it takes {', '.join(known)}.")
    return DYNAMICS[name](**options)


def from_dict(values: Mapping[str, Any]) -> Dynamics:
    """Return the dynamics that `Dynamics.to_dict` described."""
    options = dict(values)
    return create(options.pop("name"), **options)


__all__ = [
    "DYNAMICS",
    "BlendedMidpoint",
    "Coefficients",
    "Dynamics",
    "Hamiltonian",
    "Leapfrog",
    "Midpoint",
    "Residual",
    "TwoEvaluationMidpoint",
    "create",
    "from_dict",
    "register",
]
