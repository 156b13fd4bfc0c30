"""Activation policies: which activations the forward pass stores, and which the backward pass recomputes.

To add one, write one file and add one line to `ACTIVATIONS`.
"""

from revformers.activations.base import ActivationPolicy
from revformers.activations.budget.budget import Budget
from revformers.activations.checkpoint import Checkpoint
from revformers.activations.offload import Offload
from revformers.activations.rebuild import Rebuild
from revformers.activations.store import Store

ACTIVATIONS: dict[str, type[ActivationPolicy]] = {
    policy.name: policy for policy in (Store, Checkpoint, Offload, Rebuild, Budget)
}
"""Every policy that recipes, commands and saved models can name."""


def register(kind: type[ActivationPolicy]) -> type[ActivationPolicy]:
    """Register a policy of your own, so that recipes and saved models can name it; usable as a class decorator.

    Raises:
        ValueError: if another policy has the same name.

    """
    known = ACTIVATIONS.setdefault(kind.name, kind)
    if known is not kind:
        raise ValueError(f"The name {kind.name!r} belongs to {known.__name__}; give {kind.__name__} another one.")
    return kind


def parse_policy(policy: ActivationPolicy | str) -> ActivationPolicy:
    """Return the policy named by a string such as "rebuild" or "budget:20GiB"; a policy is returned unchanged.

    Raises:
        TypeError: if `policy` is neither.
        ValueError: if the name is not in `ACTIVATIONS`, or the policy does not have these options.

    """
    if isinstance(policy, ActivationPolicy):
        return policy
    if not isinstance(policy, str):
        raise TypeError(f"An activation policy is an object such as revformers.Rebuild(), or its name, not {policy!r}.")
    name, _, options = policy.partition(":")
    if name not in ACTIVATIONS:
        raise ValueError(
            f"There is no activation policy {name!r}; choose one of {', '.join(ACTIVATIONS)} (a budget takes a size, "
            f"as in budget:20GiB), or import the module that registers your own first."
        )
    return ACTIVATIONS[name].from_text(options)


__all__ = [
    "ACTIVATIONS",
    "ActivationPolicy",
    "Budget",
    "Checkpoint",
    "Offload",
    "Rebuild",
    "Store",
    "parse_policy",
    "register",
]
