"""Activation policies: which activations the forward pass stores, and which the backward pass recomputes.

To add one, write one file and add one line to `ACTIVATIONS`.
"""

from revformers.activations.base import ActivationPolicy
from revformers.activations.budget.budget import Budget
from revformers.activations.checkpoint import Checkpoint
from revformers.activations.offload import Offload
from revformers.activations.rebuild import Rebuild
from revformers.activations.store import Store
from revformers.registration import add, require_own_name

ACTIVATIONS: dict[str, type[ActivationPolicy]] = {
    policy.name: policy for policy in (Store, Checkpoint, Offload, Rebuild, Budget)
}
"""Every policy that recipes, commands and saved models can name."""


def register(kind: type[ActivationPolicy]) -> type[ActivationPolicy]:
    """Register a policy of your own, so that recipes and saved models can name it; usable as a class decorator.

    Raises:
        TypeError: if `kind` is no class of policies, or its name is not a string.
        ValueError: if another policy has the same name, or the name has a colon.

    """
    return add(kind, ActivationPolicy, ACTIVATIONS)


def parse_policy(policy: ActivationPolicy | str) -> ActivationPolicy:
    """Return the policy named by a string such as "rebuild" or "budget:20GiB"; a policy is returned unchanged.

    Raises:
        TypeError: if `policy` is neither, or does not say its name or what it keeps.
        ValueError: if the name is not in `ACTIVATIONS`, or the policy does not have these options; if a policy has the
            name of another, or its text does not contain all of its options.

    """
    if isinstance(policy, ActivationPolicy):
        _require_own_text(policy)
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


def _require_own_text(policy: ActivationPolicy) -> None:
    """Raise an error unless the text of a policy, which is all that is saved of it, stands for this policy alone."""
    kind = type(policy)
    require_own_name(kind, ACTIVATIONS)
    if not isinstance(getattr(policy, "keeps", None), str):
        raise TypeError(
            f"{kind.__name__} does not say what a forward pass keeps; set it in the class, such as "
            f'keeps = "the input of every step".'
        )
    name, _, options = str(policy).partition(":")
    try:
        again = kind.from_text(options)
    except (TypeError, ValueError):
        again = None
    if name != kind.name or again != policy:
        raise ValueError(
            f"{kind.__name__} is saved as the text {str(policy)!r}, which does not give an equal policy again; make it "
            f"a frozen dataclass, write its options in __str__, and read them in from_text."
        )


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
