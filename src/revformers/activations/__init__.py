"""Activation policies: what the backward pass finds, and what it computes again.

A new one is one new file and one line in `ACTIVATIONS`.
"""

from collections.abc import Callable
from functools import partial

from revformers.activations.base import ActivationPolicy
from revformers.activations.budget.budget import Budget
from revformers.activations.budget.budgeted import Budgeted
from revformers.activations.checkpoint import Checkpoint
from revformers.activations.offload import Offload
from revformers.activations.store import Store
from revformers.dynamics.base import Dynamics
from revformers.engine.states import StatePair
from revformers.engine.tape import Tape

ACTIVATIONS: dict[str, type[ActivationPolicy]] = {
    "store": Store,
    "checkpoint": Checkpoint,
    "offload": Offload,
    "rebuild": Tape,
}

PolicyFactory = Callable[[StatePair], ActivationPolicy]
"""Makes the activation policy of one forward pass from its pair of states."""


def check_activations(activations: str, dynamics: Dynamics | None = None) -> None:
    """Raise ValueError where `activations` is no name in `ACTIVATIONS` and no budget, or needs an inverse."""
    if activations not in ACTIVATIONS and not activations.startswith("budget"):
        raise ValueError(
            f"There is no activation policy {activations!r}; choose one of {', '.join(ACTIVATIONS)}, or a budget such "
            f"as budget:20GiB."
        )
    rebuilds = activations == "rebuild" if activations in ACTIVATIONS else Budget.parse(activations).rebuilds
    if dynamics is not None and rebuilds and not dynamics.reversible:
        raise ValueError(
            f'{type(dynamics).__name__} has no inverse to rebuild activations with; use "store", "checkpoint", '
            f'"offload" or "budget:20GiB:checkpoint", or reversible dynamics.'
        )


def policy_factory(activations: str, dynamics: Dynamics, number_of_layers: int) -> PolicyFactory:
    """Return what makes the policy that `activations` names, for a stack of `number_of_layers` layers."""
    if activations in ACTIVATIONS:
        return ACTIVATIONS[activations]
    steps = dynamics.steps(number_of_layers)
    return partial(Budgeted, budget=Budget.parse(activations), steps=steps, steps_per_layer=dynamics.steps_per_layer)


__all__ = [
    "ACTIVATIONS",
    "ActivationPolicy",
    "Budget",
    "Budgeted",
    "Checkpoint",
    "Offload",
    "PolicyFactory",
    "Store",
    "Tape",
    "check_activations",
    "policy_factory",
]
