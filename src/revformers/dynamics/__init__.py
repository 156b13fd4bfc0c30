"""Time-reversible dynamics. A new one is one new file and one line in `DYNAMICS`, or a call of `register`."""

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

DYNAMICS: dict[str, type[Dynamics]] = {
    dynamics.name: dynamics
    for dynamics in (Residual, Midpoint, BlendedMidpoint, TwoEvaluationMidpoint, Leapfrog, Hamiltonian)
}


def register(kind: type[Dynamics]) -> type[Dynamics]:
    """Let recipes and saved models name a dynamics of your own; also a decorator of its class.

    A model that was saved with it loads where it is registered.

    Raises:
        ValueError: for a name that another dynamics has.

    """
    known = DYNAMICS.setdefault(kind.name, kind)
    if known is not kind:
        raise ValueError(f"The name {kind.name!r} is that of {known.__name__}; give {kind.__name__} another one.")
    return kind


def create(name: str, **options: Any) -> Dynamics:
    """Return the dynamics called `name` with the given options.

    Raises:
        ValueError: for an unknown name, an unknown option or a bad value, in one sentence.

    """
    if name not in DYNAMICS:
        raise ValueError(f"There is no dynamics called {name!r}; choose one of {', '.join(DYNAMICS)}.")
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
