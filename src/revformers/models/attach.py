"""Attaching a reversible recurrence to the decoder and the layers of a model, and detaching it."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from revformers.activations import ActivationPolicy, parse_policy
from revformers.dynamics import DYNAMICS
from revformers.models.discovery import DecoderStack, find_stack, unwrap
from revformers.models.families import find_layout
from revformers.models.fields import no_branches, require_blocks, require_features
from revformers.models.forward import LayerRole, ReversibleStack, decoder_forward, layer_forward
from revformers.models.identity import Identity
from revformers.models.parts import require_reversible
from revformers.models.stand_in import StandIn, refuse_replaced
from revformers.models.update_predictor import PredictorForm, UpdatePredictor
from revformers.registration import require_own_name


def check(model: nn.Module, identity: Identity) -> DecoderStack:
    """Return the decoder of a model after checking that it can follow the recurrence of `identity`.

    Raises:
        NotReversibleError: if the model does more than pass one hidden state through its layers in order, or a layout
            does not fit its layers.
        TypeError: if dynamics of your own have no name, or return something else than coefficients.
        ValueError: if the policy does not support the dynamics, or the dynamics are for another depth, have the name of
            others, or step by branch and are to have update predictors.

    """
    stack = find_stack(model)
    if identity.predictor_form is not None:
        require_blocks(identity.dynamics)
    require_own_name(type(identity.dynamics), DYNAMICS)
    identity.activations.check(identity.dynamics)
    identity.dynamics.check(len(stack.layers))
    for layer in stack.layers:
        layout = find_layout(layer)
        if layout is not None:
            layout.check(layer)
        elif identity.dynamics.granularity == "branch":
            raise no_branches(layer, identity.dynamics)
    return stack


def attach(model: nn.Module, identity: Identity) -> ReversibleStack:
    """Make the decoder of an ordinary model follow the recurrence of `identity`, in place, and add update predictors.

    Raises:
        NotReversibleError, ValueError: as `check`, and if another library has replaced a forward.

    """
    stack = check(model, identity)
    for module in (stack.decoder, *stack.layers):
        refuse_replaced(
            module,
            "call make_reversible before that. To spread a reversible model over devices, save it and load it with "
            "device_map.",
        )
    reversible = ReversibleStack(
        dynamics=identity.dynamics,
        activations=identity.activations,
        states=identity.states,
        provenance=identity.provenance,
        number_of_layers=len(stack.layers),
    )
    stack.decoder._reversible_stack = reversible
    stack.decoder.forward = StandIn(decoder_forward, stack.decoder)
    for index, layer in enumerate(stack.layers):
        layer._reversible_role = LayerRole(reversible, index)
        layer.forward = StandIn(layer_forward, layer)
    if identity.predictor_form is not None:
        add_update_predictors(model, identity.predictor_form)
    return reversible


def detach(stack: DecoderStack) -> None:
    """Restore the forward of the decoder and the layers of a reversible model, and remove update predictors.

    Raises:
        ValueError: if another library has wrapped a forward in the meantime.

    """
    for module in (stack.decoder, *stack.layers):
        if not isinstance(vars(module).get("forward"), StandIn):
            raise ValueError(
                f"The forward of {type(module).__name__} was wrapped by another library after the model became "
                f"reversible; undo that first (accelerate.hooks.remove_hook_from_submodules, after device_map)."
            )
    for layer in stack.layers:  # first, so that an interruption cannot leave them in an ordinary model
        if hasattr(layer, "update_predictor"):
            del layer.update_predictor
    del stack.decoder._reversible_stack, stack.decoder.forward
    for layer in stack.layers:
        del layer._reversible_role, layer.forward


def set_activations(model: nn.Module, activations: ActivationPolicy | str) -> None:
    """Set the activation policy of a reversible model.

    Args:
        model: a reversible model.
        activations: as in `make_reversible`.

    Raises:
        TypeError: if `activations` is not a policy.
        ValueError: if the model is not reversible, or the policy is unknown or does not support the dynamics.

    """
    reversible = require_reversible(model)
    policy = parse_policy(activations)
    policy.check(reversible.dynamics)
    reversible.activations = policy
    reversible.budget_report = None


@contextlib.contextmanager
def activations_set_to(model: nn.Module, activations: ActivationPolicy | str) -> Iterator[None]:
    """Set the activation policy of a reversible model for the duration of a block that measures.

    The policy is restored after it, and so are what passes have recorded: the report of a budget and the largest
    magnitude.

    Raises:
        TypeError, ValueError: as `set_activations`.

    """
    reversible = require_reversible(model)
    before = reversible.activations, reversible.budget_report
    with reversible.range_watch.set_aside():
        try:
            set_activations(model, activations)
            yield
        finally:
            reversible.activations, reversible.budget_report = before


def add_update_predictors(model: nn.Module, form: PredictorForm) -> list[UpdatePredictor]:
    """Add an update predictor to every layer of a reversible model that steps by block, and return them in order.

    They predict zero until they are fitted, have the dtype and the device of their layers, and belong to the model's
    parameters and state dict. `make_residual` removes them. The predictor of the first layer omits the features of
    the previous layer.

    Raises:
        NotReversibleError: if a feature needs the branches of a family whose branches are not known.
        ValueError: if the model is not reversible, or steps by branch.

    """
    stack = find_stack(model)
    require_blocks(require_reversible(model).dynamics)
    require_features(form, stack.layers[0])
    own = tuple(feature for feature in form.features if not feature.startswith("previous_")) or ("state",)
    width = unwrap(model).config.get_text_config(decoder=True).hidden_size
    for index, layer in enumerate(stack.layers):
        weight = next(parameter for parameter in layer.parameters() if parameter.is_floating_point())
        layer.update_predictor = UpdatePredictor(
            width, form if index else replace(form, features=own), device=weight.device, dtype=weight.dtype
        )
    require_reversible(model).predictor_form = form
    return [layer.update_predictor for layer in stack.layers]


def warn_of_gradient_checkpointing(stacklevel: int = 3) -> None:
    """Warn that gradient checkpointing stays off; trainers (TRL by default) request it on their own."""
    warnings.warn(
        "Gradient checkpointing is not switched on: this model is reversible, and its activation policy decides what "
        "is recomputed. For checkpointing call revformers.set_activations(model, revformers.Checkpoint()).",
        stacklevel=stacklevel,
    )
