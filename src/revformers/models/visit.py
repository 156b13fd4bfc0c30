"""Visits to single layers of a reversible model, through the decoder, which prepares masks, positions and the like."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from revformers.engine.field import Field
from revformers.models.discovery import find_stack
from revformers.models.families import find_layout
from revformers.models.fields import LayerCall, LayerReturn, block_field, ordinary_field, previous_fields, unread
from revformers.models.forward import CURRENT_RUN, ReversibleStack


@dataclass(frozen=True)
class LayerVisit:
    """The functions of one layer, for a caller that keeps the states itself.

    Attributes:
        embedding: p[0] of the batch, (batch, tokens, width) in the compute dtype.
        ordinary: f_l, the update of the layer in the ordinary network.
        update: the update of its step under the model's dynamics, without the update predictor.
        previous: the features of its update predictor that evaluate the layer before, by name.

    """

    embedding: Tensor
    ordinary: Field
    update: Field
    previous: Mapping[str, Field]


class _Collection:
    """A run of the decoder that records the calls of its layers and skips the layers themselves."""

    def __init__(self, stack: ReversibleStack) -> None:
        self.stack = stack
        self.embedding: Tensor | None = None
        self.calls: list[LayerCall] = []

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Any:
        """Record the call of `layer`; return the hidden state unchanged."""
        if self.embedding is None:
            self.embedding = hidden.detach()
        call, returned = LayerCall(layer, layer._reversible_role.index, inputs), LayerReturn()
        self.calls.append(call)
        field = ordinary_field(call, returned)
        if find_layout(layer) is None:
            field(hidden)  # only an evaluation shows in what form such a layer returns its hidden state
        others = returned.finish()
        return hidden if others is None else (hidden, *others)


def layer_calls(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, list[LayerCall]]:
    """Run the decoder on `batch` and return p[0], (batch, tokens, width), and the calls of all layers, in order.

    The calls hold masks and positions; `named_fields` makes the fields of any dynamics from them.

    Args:
        model: a reversible model.
        batch: keyword arguments of the decoder, e.g. ``{"input_ids": int64[batch, tokens]}``.

    """
    decoder = find_stack(model).decoder
    collection = _Collection(decoder._reversible_stack)
    token = CURRENT_RUN.set(collection)
    try:
        type(decoder).forward(decoder, **batch, use_cache=False)
    finally:
        CURRENT_RUN.reset(token)
    assert collection.embedding is not None
    return collection.embedding, collection.calls


def visit_layer(model: nn.Module, batch: Mapping[str, Any], index: int) -> LayerVisit:
    """Run the decoder on `batch` and return the functions of layer `index`.

    The layers are skipped where their form is known, so that a caller can walk through the stack layer by layer on
    states that it keeps.

    Args:
        model: a reversible model that steps by block.
        batch: keyword arguments of the decoder, e.g. ``{"input_ids": int64[batch, tokens]}``.
        index: the number of the layer, from 0.

    """
    embedding, calls = layer_calls(model, batch)
    call, before = calls[index], calls[index - 1] if index else None
    predictor = getattr(call.layer, "update_predictor", None)
    dynamics = find_stack(model).decoder._reversible_stack.dynamics
    return LayerVisit(
        embedding,
        ordinary=ordinary_field(call, unread()),
        update=block_field(call, before, dynamics, unread()),
        previous={} if predictor is None else previous_fields(predictor.form, before),
    )
