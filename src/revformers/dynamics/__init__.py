"""Time-reversible dynamics. A new one is one new file and one line in `DYNAMICS`."""

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


def create(name: str, **options: Any) -> Dynamics:
    """Return the dynamics called `name` with the given options.

    Raises:
        ValueError: for an unknown name, an unknown option or a bad value, in one sentence.

    """
    if name not in DYNAMICS:
        raise ValueError(f"There is no dynamics called {name!r}; choose one of {', '.join(DYNAMICS)}.")
    known = [parameter for parameter in inspect.signature(DYNAMICS[name]).parameters if parameter != "options"]
    known += [option for option in ("granularity", "start", "readout") if option not in known]
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
]
