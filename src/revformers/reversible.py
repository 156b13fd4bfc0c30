"""Making a transformers model reversible, in place, and ordinary again."""

from typing import TypeVar

from torch import nn

from revformers.activations import ActivationPolicy, parse_policy
from revformers.checkpoints.model_class import become_ordinary, become_reversible
from revformers.dynamics.base import Dynamics
from revformers.models.attach import check
from revformers.models.discovery import unwrap
from revformers.models.hint import hint_at_conversion, warn_of_lost_predictors
from revformers.models.identity import Identity
from revformers.models.state import reversible_stack

Model = TypeVar("Model", bound=nn.Module)


def make_reversible(model: Model, dynamics: Dynamics, activations: ActivationPolicy | str = "rebuild") -> Model:
    """Give a model reversible dynamics, in place.

    Weights, module names and state-dict keys stay as they are; the class of the model and of its configuration become
    subclasses of the same name (`revformers.checkpoints.model_class`). A model that is reversible already gets the new
    dynamics and policy, and loses update predictors, with a warning.

    Pretrained weights lose much of what they know in dynamics far from the ordinary network's. Where a model came from
    `from_pretrained` and is still ordinary, and the dynamics have a coefficient |a| of p[l-1] beyond 1/8 (`Midpoint`,
    `Leapfrog`, `Hamiltonian`, large blends), a `ConversionHint` warns of it, once a process: `revformers.convert` is
    for that.

    Args:
        model: a model of transformers with one stack of layers, under any head (a causal language model, a classifier,
            a bare decoder, an encoder, a model with a language model inside), or a PEFT model around one.
        dynamics: e.g. `Midpoint()`.
        activations: the activation policy: `Rebuild()`, `Store()`, `Checkpoint()`, `Offload()` or a `Budget`, or its
            name, such as ``"rebuild"`` or ``"budget:20GiB"``.

    Returns:
        The same model.

    Raises:
        NotReversibleError: where the model is no plain fold over its layers; some models show it only in their first
            forward pass.
        TypeError: where `dynamics` is no dynamics, or `activations` no policy.
        ValueError: for an unknown policy, one that does not go with the dynamics, dynamics of another depth, or a model
            whose forward another library has replaced.

    """
    if not isinstance(dynamics, Dynamics):
        raise TypeError(f"make_reversible takes a dynamics such as revformers.Midpoint(), not {dynamics!r}.")
    identity = Identity(dynamics=dynamics, activations=parse_policy(activations))
    stack = check(unwrap(model), identity)
    if reversible_stack(model) is None:
        hint_at_conversion(model, dynamics, len(stack.layers))
    warn_of_lost_predictors(model)
    become_reversible(model, identity)
    return model


def make_residual(model: Model) -> Model:
    """Make a reversible model the ordinary network again, in place; an ordinary one stays as it is.

    Returns:
        The same model, with the weights it had; update predictors of a converted model are removed.

    """
    become_ordinary(model)
    return model
