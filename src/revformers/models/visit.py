"""One layer of a reversible model, reached through its decoder, which prepares masks, positions and other arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from revformers.engine.field import Field
from revformers.models.discovery import find_stack
from revformers.models.families import find_layout
from revformers.models.fields import LayerCall, LayerReturn, block_field, ordinary_field, previous_fields
from revformers.models.forward import CURRENT_RUN, ReversibleStack


@dataclass(frozen=True)
class LayerVisit:
    """One layer for a caller that keeps the states itself.

    Attributes:
        embedding: p[0] of the batch, (batch, tokens, width) in the compute dtype.
        ordinary: f_l, what the layer adds in the ordinary network.
        update: what its step adds under the model's dynamics, without update predictor.
        previous: for each feature of its update predictor that the layer before is evaluated for, that function.

    """

    embedding: Tensor
    ordinary: Field
    update: Field
    previous: Mapping[str, Field]


class _Visit:
    """A run through the decoder that computes only at one layer: what it prepares for the layers is its own."""

    def __init__(self, stack: ReversibleStack, index: int, visit: Callable[[LayerVisit], None]) -> None:
        self.stack = stack
        self._index = index
        self._visit = visit
        self._before: LayerCall | None = None

    def layer(self, layer: Any, hidden: Tensor, inputs: dict[str, Any]) -> Any:
        """Hand the functions of the chosen layer to the visitor; let every other layer pass."""
        call, returned = LayerCall(layer, layer._reversible_role.index, inputs), LayerReturn()
        ordinary = ordinary_field(call, returned)
        if call.index == self._index:
            predictor = getattr(layer, "update_predictor", None)
            previous = previous_fields(predictor.form, self._before) if predictor is not None else {}
            update = block_field(call, self._before, self.stack.dynamics, returned)
            self._visit(LayerVisit(hidden, ordinary, update, previous))
        if find_layout(layer) is None:
            ordinary(hidden)  # only its evaluation tells in what form such a layer returns its hidden state
        self._before = call
        others = returned.finish()
        return hidden if others is None else (hidden, *others)


def visit_layer(model: nn.Module, batch: Mapping[str, Tensor], index: int, visit: Callable[[LayerVisit], None]) -> None:
    """Call `visit` with layer `index`, as the decoder runs on `batch`.

    No other layer is evaluated, so that a whole stack can be walked layer by layer on states that the caller keeps.

    Args:
        model: a reversible model that steps by block.
        batch: what the decoder takes, e.g. ``{"input_ids": int64[batch, tokens]}``.
        index: the number of the layer.
        visit: given the functions of the layer, which it may call until it returns.

    """
    decoder = find_stack(model).decoder
    token = CURRENT_RUN.set(_Visit(decoder._reversible_stack, index, visit))
    try:
        type(decoder).forward(decoder, **batch, use_cache=False)
    finally:
        CURRENT_RUN.reset(token)
