"""Conversion of a transformers model to reversible dynamics and back to the ordinary network, in place."""

from typing import TypeVar

from torch import nn

from revformers.activations import ActivationPolicy, parse_policy
from revformers.checkpoints.model_class import become_ordinary, become_reversible
from revformers.dynamics.base import Dynamics
from revformers.engine.state_format import StateFormat, parse_states
from revformers.models.attach import check
from revformers.models.discovery import unwrap
from revformers.models.hint import hint_at_conversion, warn_of_lost_predictors
from revformers.models.identity import Identity
from revformers.models.parts import reversible_stack

Model = TypeVar("Model", bound=nn.Module)


def make_reversible(
    model: Model,
    dynamics: Dynamics,
    activations: ActivationPolicy | str = "rebuild",
    states: StateFormat | str = "auto",
) -> Model:
    """Give a model reversible dynamics, in place.

    Weights, module names and state-dict keys do not change. The classes of the model and of its configuration become
    subclasses of the same name (`revformers.checkpoints.model_class`). A model that is already reversible gets the new
    dynamics and policy, and loses its update predictors, with a warning.

    Dynamics far from the ordinary network's degrade a pretrained model; use `revformers.convert` instead. A
    `ConversionHint` warns once per process if an ordinary model came from `from_pretrained` and the dynamics have a
    coefficient |a| of p[l-1] above 1/8 (`Midpoint`, `Leapfrog`, `Hamiltonian`, large blends).

    Args:
        model: a model of transformers with one stack of layers, under any head (a causal language model, a classifier,
            a bare decoder, an encoder, a model with a language model inside), or a PEFT model around one.
        dynamics: e.g. `Midpoint()`.
        activations: the activation policy: `Rebuild()`, `Store()`, `Checkpoint()`, `Offload()` or a `Budget`, or its
            name, such as ``"rebuild"`` or ``"budget:20GiB"``.
        states: the format of the states: ``"int32"`` (8 bytes an element for the pair), ``"int64"`` (16), or
            ``"auto"``: int32 for layers in bfloat16 or float16 and under autocast, int64 for layers in float32 or
            float64. ``"auto:14"`` and ``"int32:14"`` also set the binary digits after the point of 32-bit states, which
            are 16 otherwise and hold magnitudes up to 32,512; see `choose_states`.

    Returns:
        The same model.

    Raises:
        NotReversibleError: if the model does more than pass one hidden state through its layers in order. Some models
            are refused only in their first forward pass.
        TypeError: if `dynamics` is not a dynamics, `activations` is not a policy, or `states` is not a format.
        ValueError: if the policy is unknown or does not support the dynamics, there are no such states, the dynamics
            are for another depth, or another library has replaced the model's forward.

    """
    if not isinstance(dynamics, Dynamics):
        raise TypeError(f"make_reversible takes a dynamics such as revformers.Midpoint(), not {dynamics!r}.")
    identity = Identity(dynamics=dynamics, activations=parse_policy(activations), states=parse_states(states))
    stack = check(unwrap(model), identity)
    if reversible_stack(model) is None:
        hint_at_conversion(model, dynamics, len(stack.layers))
    warn_of_lost_predictors(model)
    become_reversible(model, identity)
    return model


def make_residual(model: Model) -> Model:
    """Turn a reversible model back into the ordinary network, in place; an ordinary model is not changed.

    Returns:
        The same model with the same weights; update predictors of a converted model are removed.

    """
    become_ordinary(model)
    return model
