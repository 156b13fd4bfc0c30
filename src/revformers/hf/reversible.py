"""Making a transformers model reversible, in place, and ordinary again."""

import warnings
from dataclasses import replace
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from revformers.activations import Budget, check_activations
from revformers.dynamics.base import Dynamics
from revformers.hf.discovery import find_stack, unwrap
from revformers.hf.families import find_layout
from revformers.hf.fields import LayerCall, no_branches, previous_fields
from revformers.hf.forward import LayerRole, ReversibleStack, decoder_forward, layer_forward
from revformers.hf.hint import hint_at_conversion
from revformers.hf.hub import push_to_hub
from revformers.hf.quantization import keep_trainable
from revformers.hf.saving import save_pretrained
from revformers.hf.state import require_reversible, reversible_stack
from revformers.update_predictor import PredictorForm, UpdatePredictor

Model = TypeVar("Model", bound=nn.Module)

BASE_WITHOUT_NAME = "a reversible model that was not loaded with revformers.from_pretrained"
"""The name of a model that was made reversible in memory. PEFT writes the name of a model into adapter_config.json as
the base to load, and the ordinary network that the weights came from would be the wrong one; this one cannot load."""


def make_reversible(model: Model, dynamics: Dynamics, activations: str | Budget = "rebuild") -> Model:
    """Give a causal language model reversible dynamics, in place.

    Weights, module names and state-dict keys stay as they are. A model that is reversible already gets the new
    dynamics and policy.

    Pretrained weights lose much of what they know in dynamics far from the ordinary network's. Where a model came from
    `from_pretrained` and is still ordinary, and the dynamics have a coefficient |a| of p[l-1] beyond 1/8 (`Midpoint`,
    `Leapfrog`, `Hamiltonian`, large blends), a `ConversionHint` warns of it, once a process: `revformers.convert` is
    for that.

    Args:
        model: a decoder-only causal language model of transformers, or a PEFT model around one.
        dynamics: e.g. `Midpoint()`.
        activations: what the backward pass finds: ``"rebuild"``, ``"store"``, ``"checkpoint"``, ``"offload"``, or as
            much as a `Budget` has room for.

    Returns:
        The same model.

    Raises:
        NotReversibleError: where the model is no plain fold over its layers; some models show it only in their first
            forward pass.
        ValueError: for an unknown policy, one that does not go with the dynamics, or dynamics of another depth.

    """
    if not isinstance(dynamics, Dynamics):
        raise TypeError(f"make_reversible takes a dynamics such as revformers.Midpoint(), not {dynamics!r}.")
    stack = find_stack(model)
    activations = str(activations)
    check_activations(activations, dynamics)
    dynamics.check(len(stack.layers))
    for layer in stack.layers:
        if dynamics.granularity == "branch" and find_layout(layer) is None:
            raise no_branches(layer, dynamics)
    inner = unwrap(model)
    if reversible_stack(model) is None:
        hint_at_conversion(model, dynamics, len(stack.layers))
    make_residual(model)
    keep_trainable(inner)
    if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
        _gradient_checkpointing_enable(inner)
        inner.gradient_checkpointing_disable()
    for module in (stack.decoder, *stack.layers):
        if "forward" in vars(module):
            raise ValueError(
                f"The forward of {type(module).__name__} was replaced by another library; call make_reversible first "
                f"(before accelerate's dispatch or hooks)."
            )
    reversible = ReversibleStack(dynamics, activations, len(stack.layers))
    stack.decoder._reversible_stack = reversible
    stack.decoder.forward = MethodType(decoder_forward, stack.decoder)
    for index, layer in enumerate(stack.layers):
        layer._reversible_role = LayerRole(reversible, index)
        layer.forward = MethodType(layer_forward, layer)
    inner.save_pretrained = MethodType(save_pretrained, inner)
    inner.push_to_hub = MethodType(push_to_hub, inner)
    inner.name_or_path = BASE_WITHOUT_NAME
    inner.gradient_checkpointing_enable = MethodType(_gradient_checkpointing_enable, inner)
    return model


def make_residual(model: Model) -> Model:
    """Make a reversible model the ordinary network again, in place; an ordinary one stays as it is.

    Returns:
        The same model, with the weights it had; update predictors of a converted model are removed.

    """
    if reversible_stack(model) is None:
        return model
    stack = find_stack(model)
    del stack.decoder._reversible_stack, stack.decoder.forward
    for layer in stack.layers:
        del layer._reversible_role, layer.forward
        if hasattr(layer, "update_predictor"):
            del layer.update_predictor
    inner = unwrap(model)
    inner.name_or_path = inner.config.name_or_path
    del inner.save_pretrained, inner.push_to_hub, inner.gradient_checkpointing_enable
    return model


def add_update_predictors(model: nn.Module, form: PredictorForm) -> list[UpdatePredictor]:
    """Give every layer of a reversible model that steps by block an update predictor, and return them in order.

    They predict zero until they are fitted, take the dtype and the device of their layers, belong to the model's
    parameters and state dict, and go with `make_residual`. That of the first layer leaves out the features of a layer
    before it.

    Raises:
        NotReversibleError: for features that need the branches of a family whose branches are not known.

    """
    stack = find_stack(model)
    previous_fields(form, LayerCall(stack.layers[0], 0, {}))
    own = tuple(feature for feature in form.features if not feature.startswith("previous_")) or ("state",)
    width = unwrap(model).config.get_text_config(decoder=True).hidden_size
    for index, layer in enumerate(stack.layers):
        weight = next(parameter for parameter in layer.parameters() if parameter.is_floating_point())
        layer.update_predictor = UpdatePredictor(
            width, form if index else replace(form, features=own), device=weight.device, dtype=weight.dtype
        )
    require_reversible(model).predictor_features = form.features
    return [layer.update_predictor for layer in stack.layers]


def set_activations(model: nn.Module, activations: str | Budget) -> None:
    """Choose what the backward pass of a reversible model finds.

    Args:
        model: a reversible model.
        activations: a name in `revformers.activations.ACTIVATIONS`, or a `Budget`, also as its text ("budget:20GiB").

    Raises:
        ValueError: for a model that is not reversible, an unknown policy, or one that does not go with the dynamics.

    """
    reversible = require_reversible(model)
    check_activations(str(activations), reversible.dynamics)
    reversible.activations = str(activations)


def _gradient_checkpointing_enable(model: nn.Module, *_: Any, **__: Any) -> None:
    """Say that the activation policy decides: trainers (TRL by default) ask for checkpointing on their own."""
    warnings.warn(
        "Gradient checkpointing is not switched on: this model is reversible, and its activation policy decides what "
        'is recomputed. For checkpointing call revformers.set_activations(model, "checkpoint").',
        stacklevel=2,
    )
