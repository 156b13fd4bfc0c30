"""The fields of a decoder layer: its updates of the residual stream, as functions of the hidden state alone."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from revformers.dynamics.base import Dynamics
from revformers.engine.field import Field
from revformers.errors import NotReversibleError
from revformers.models.families import find_layout
from revformers.models.families.layout import BlockLayout, ModuleCall
from revformers.models.update_predictor import PredictorForm, UpdatePredictor
from revformers.private_api import is_refused_write, version_of


def layer_inputs(layer: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a layer's call except the hidden state, by name.

    The names come from the layer's signature, because some decoders pass arguments by position (GPT-2).
    """
    try:
        bound = inspect.signature(type(layer).forward).bind(layer, None, *arguments, **keywords)
    except TypeError as error:
        raise NotReversibleError(
            f"{type(layer).__name__} takes something else before its hidden state; only layers that map one hidden "
            f"state to one hidden state can be reversed."
        ) from error
    inputs = dict(list(bound.arguments.items())[2:])
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            inputs.update(inputs.pop(parameter.name, {}))
    return inputs


class LayerReturn:
    """The form in which a layer returns its hidden state: alone, or followed by others, such as attention weights.

    The other values belong to the autograd graph of the forward pass. They have gradients under every activation
    policy, because a second evaluation of the layer also rebuilds the tensors that autograd saved for them.
    """

    def __init__(self) -> None:
        self._others: tuple[Any, ...] | None = None
        self._finished = False

    def set_others(self, others: Sequence[Any]) -> None:
        """Record that the layer returns a tuple, with `others` after its hidden state."""
        if not self._finished:
            self._others = tuple(others)

    def finish(self) -> tuple[Any, ...] | None:
        """Release and return the other values; None if the hidden state is returned alone.

        Values of a second evaluation are not recorded, because they would live as long as the autograd graph.
        """
        self._finished = True
        others, self._others = self._others, None
        return others


def unread() -> LayerReturn:
    """Return a record that keeps none of the further values, for a caller who reads the hidden state alone."""
    returned = LayerReturn()
    returned.finish()
    return returned


def evaluate(function: Callable[..., Any], layer: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> Any:
    """Return `function(layer, hidden, *inputs)`; every evaluation of a layer, compiled or not, calls this function."""
    return function(layer, hidden, *inputs)


Evaluate = Callable[[Callable[..., Any], nn.Module, tuple[Any, ...], Tensor], Any]


@dataclass(frozen=True)
class LayerCall:
    """The call of a decoder layer in one forward pass.

    Attributes:
        layer: the layer.
        index: its number, from 0.
        inputs: the arguments of the call except the hidden state.
        evaluate: `evaluate`, or its version compiled by `revformers.compile_layers`.

    """

    layer: nn.Module
    index: int
    inputs: Mapping[str, Any]
    evaluate: Evaluate = evaluate


def named_fields(
    call: LayerCall, before: LayerCall | None, dynamics: Dynamics, returned: LayerReturn
) -> Iterator[tuple[str, Field]]:
    """Yield the name and the field of every step that a layer takes under `dynamics`.

    Args:
        call: the layer.
        before: the layer before it; None for the first.
        dynamics: decides whether the layer takes one step per block or per branch.
        returned: records the values that the layer returns when its fields are evaluated.

    Raises:
        NotReversibleError: if the branches of the layer are needed and not known.
        ValueError: if the layer before is evaluated a second time and was called with a key-value cache.

    """
    layout = find_layout(call.layer)
    name = f"layer {call.index}"
    if dynamics.granularity == "branch":
        if layout is None:
            raise no_branches(call.layer, dynamics)
        yield f"{name} (attention)", _with_attention(layout.attention_update, layout, call, returned)
        yield f"{name} (mlp)", partial(call.evaluate, layout.mlp_update, call.layer, ())
        return
    field = block_field(call, before, dynamics, returned)
    predictor = getattr(call.layer, "update_predictor", None)
    if predictor is not None:
        field = partial(_corrected, field, predictor, previous_fields(predictor.form, before))
    yield name, field


def block_field(call: LayerCall, before: LayerCall | None, dynamics: Dynamics, returned: LayerReturn) -> Field:
    """Return the field of a whole layer under `dynamics`, without its update predictor."""
    field = ordinary_field(call, returned)
    weight = dynamics.previous_update(call.index)
    if not weight:
        return field
    assert before is not None
    return partial(_sum, field, _previous_update(before), weight)


def ordinary_field(call: LayerCall, returned: LayerReturn) -> Field:
    """Return f_l, the update of the layer in the ordinary network."""
    layout = find_layout(call.layer)
    if layout is not None:
        return _with_attention(layout.block_update, layout, call, returned)
    return partial(_difference, call, returned)


def _with_attention(
    function: Callable[..., tuple[Tensor, tuple[Any, ...]]], layout: BlockLayout, call: LayerCall, returned: LayerReturn
) -> Field:
    """Return the field `function` of a layout, which also records the further values that attention returns."""
    number = layout.others_returned(call.layer)
    if number:
        returned.set_others([None] * number)
    return partial(_noting, function, call, layout.attention_call(call.layer, call.inputs), number, returned)


def _noting(
    function: Callable[..., tuple[Tensor, tuple[Any, ...]]],
    call: LayerCall,
    attention: ModuleCall,
    number: int,
    returned: LayerReturn,
    hidden: Tensor,
) -> Tensor:
    update: Tensor
    update, others = call.evaluate(function, call.layer, (attention,), hidden)
    if number:
        returned.set_others([*others, *[None] * number][:number])
    return update


def previous_fields(form: PredictorForm, before: LayerCall | None) -> dict[str, Field]:
    """Return the features of an update predictor that evaluate the layer before, by name."""
    fields: dict[str, Field] = {}
    for feature in form.features:
        if feature == "previous_update":
            assert before is not None
            fields[feature] = _previous_update(before)
        elif feature == "previous_mlp":
            assert before is not None
            fields[feature] = partial(before.evaluate, _layout_of_mlp(before.layer).mlp_update, before.layer, ())
    return fields


def require_features(form: PredictorForm, layer: nn.Module) -> None:
    """Raise NotReversibleError if a feature needs the branches of a layer and they are not known."""
    if "previous_mlp" in form.features:
        _layout_of_mlp(layer)


def require_blocks(dynamics: Dynamics) -> None:
    """Raise ValueError if a step is no whole block, as update predictors correct the update of a block."""
    if dynamics.granularity == "branch":
        raise ValueError(
            f"Update predictors correct steps by block, and {type(dynamics).__name__} steps by branch here; use no "
            f"predictors, or dynamics that step by block."
        )


def _layout_of_mlp(layer: nn.Module) -> BlockLayout:
    layout = find_layout(layer)
    if layout is None:
        raise NotReversibleError(
            f"An update predictor on previous_mlp needs to know where {type(layer).__name__} splits into attention and "
            f"MLP; use the features state and update, or give its layout to revformers.register_layout."
        )
    return layout


def holds_cache(inputs: Mapping[str, Any]) -> bool:
    """Whether a layer was called with a key-value cache."""
    return any(isinstance(value, Cache) for value in inputs.values())


def no_branches(layer: nn.Module, dynamics: Dynamics) -> NotReversibleError:
    """Return the error for dynamics that step by branch in a layer whose branches are not known."""
    return NotReversibleError(
        f"{type(dynamics).__name__} steps by branch, and where {type(layer).__name__} splits into attention and MLP is "
        f'not known; use a dynamics with granularity="block", or give its layout to revformers.register_layout.'
    )


def _previous_update(before: LayerCall) -> Field:
    """Return f_{l-1} for its second evaluation, at p[l], whose keys and values a cache cannot hold."""
    if holds_cache(before.inputs):
        raise ValueError(
            "This model evaluates the attention of every layer twice, which a key-value cache does not support; "
            "pass use_cache=False, also to generate."
        )
    unread = LayerReturn()
    unread.finish()
    return ordinary_field(before, unread)


def _sum(field: Field, second: Field, weight: float, hidden: Tensor) -> Tensor:
    """The field of dynamics with two evaluations per step: f_l(x) + weight * f_{l-1}(x), in float32 or wider."""
    update, addition = field(hidden), second(hidden)
    wide = torch.promote_types(update.dtype, torch.float32)
    return update.to(wide) + weight * addition.to(wide)


def _corrected(field: Field, predictor: UpdatePredictor, previous: Mapping[str, Field], hidden: Tensor) -> Tensor:
    """The field of a layer with an update predictor: f(x) + u(x)."""
    update = field(hidden)
    known = {"state": hidden, "update": update}
    features = [known[name] if name in known else previous[name](hidden) for name in predictor.form.features]
    correction = predictor(features)
    wide = torch.promote_types(correction.dtype, torch.float32)
    return update.to(wide) + correction.to(wide)


def _difference(call: LayerCall, returned: LayerReturn, hidden: Tensor) -> Tensor:
    """f(x) = layer(x) - x, correct for every layer that maps one hidden state to one hidden state.

    The difference is taken in at least float32, so that a half-precision model loses no more precision than by the
    addition inside the layer.
    """
    # Inference tensors have no version counter.
    given = hidden.clone() if hidden.is_inference() else hidden
    version = version_of(given)
    try:
        output = call.evaluate(_forward, call.layer, (call.inputs,), given)
    except RuntimeError as error:
        # In training PyTorch itself raises, with the name of an autograd function of this library in the message.
        if not is_refused_write(error, "_Use"):
            raise
        raise _writes_to_input(call.layer) from error
    if version_of(given) != version:
        raise _writes_to_input(call.layer)
    if not isinstance(output, Tensor):
        output, *others = output
        returned.set_others(others)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return output.to(wide) - hidden.to(wide)


def _writes_to_input(layer: nn.Module) -> NotReversibleError:
    return NotReversibleError(
        f"{type(layer).__name__} writes to its input in place, so its update of the hidden state is not known; let "
        f"its forward make a new tensor (hidden_states = hidden_states + update)."
    )


def _forward(layer: nn.Module, hidden: Tensor, inputs: Mapping[str, Any]) -> Any:
    return type(layer).forward(layer, hidden, **inputs)
