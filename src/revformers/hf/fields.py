"""The fields of a decoder layer: what it adds to the stream, as functions of the stream alone."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from revformers.dynamics.base import Dynamics
from revformers.errors import NotReversibleError
from revformers.field import Field
from revformers.hf.families import find_layout


def layer_inputs(layer: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything a layer was called with besides its hidden state, by name.

    Names come from the layer's own signature, since some decoders pass them by position (GPT-2).
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


class NotKept:
    """Stands where an ordinary layer returns something besides its hidden state, such as attention weights.

    A backward pass that evaluates layers again rebuilds the hidden state alone. Decoders that ignore the rest run as
    they are; a layer that is called with this object would have read it, and then the model is refused.
    """


NOT_KEPT = NotKept()


class LayerReturn:
    """In what form a layer returns its hidden state: alone, or first of several values.

    Args:
        keep: whether the other values are handed on as they are.

    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._others: tuple[Any, ...] | None = None

    def set_others(self, others: Sequence[Any]) -> None:
        """Note that the layer returns a tuple, with `others` behind its hidden state."""
        self._others = tuple(value if self._keep or value is None else NOT_KEPT for value in others)

    def of(self, hidden: Tensor) -> Any:
        """Return `hidden` in the form that the decoder expects from the layer."""
        return hidden if self._others is None else (hidden, *self._others)


def named_fields(
    layer: nn.Module, index: int, dynamics: Dynamics, inputs: Mapping[str, Any], returned: LayerReturn
) -> Iterator[tuple[str, Field]]:
    """Yield the name and the field of every step that `layer` takes under `dynamics`.

    Args:
        layer: a decoder layer of transformers.
        index: its number, for messages.
        dynamics: decides between one step a block and one a branch.
        inputs: what the layer was called with besides its hidden state; every field sees the same.
        returned: told in what form the layer returns its hidden state, at the latest when its fields are evaluated.

    Raises:
        NotReversibleError: for steps by branch where the branches of the layer's family are not known.

    """
    layout = find_layout(layer)
    name = f"layer {index}"
    if layout is not None and layout.values_returned > 1:
        returned.set_others([NOT_KEPT] * (layout.values_returned - 1))
    if dynamics.granularity == "branch":
        if layout is None:
            raise no_branches(layer, dynamics)
        yield f"{name} (attention)", partial(_with, layout.attention_update, layer, inputs)
        yield f"{name} (mlp)", partial(layout.mlp_update, layer)
        return
    if layout is not None:
        field: Field = partial(_with, layout.block_update, layer, inputs)
    else:
        field = partial(_difference, layer, inputs, returned)
    predictor = getattr(layer, "update_predictor", None)
    yield name, field if predictor is None else partial(_corrected, field, predictor)


def no_branches(layer: nn.Module, dynamics: Dynamics) -> NotReversibleError:
    """Return the error for steps by branch on a family whose branches are not known."""
    return NotReversibleError(
        f"{type(dynamics).__name__} steps by branch, and where {type(layer).__name__} splits into attention and MLP is "
        f'not known; use a dynamics with granularity="block", or add the family to revformers.hf.families.'
    )


def _with(update: Any, layer: nn.Module, inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
    result: Tensor = update(layer, hidden, inputs)
    return result


def _corrected(field: Field, predictor: nn.Module, hidden: Tensor) -> Tensor:
    """The field of a layer that `revformers.convert` gave an update predictor: f(x) + u(x, f(x))."""
    update = field(hidden)
    correction = predictor(hidden, update)
    wide = torch.promote_types(correction.dtype, torch.float32)
    return update.to(wide) + correction.to(wide)


def _difference(layer: nn.Module, inputs: Mapping[str, Any], returned: LayerReturn, hidden: Tensor) -> Tensor:
    """f(x) = layer(x) - x: right for every layer that maps one hidden state to one hidden state.

    The difference is taken in at least float32, so that half-precision models lose no more than their own addition
    inside the layer already loses.
    """
    output = type(layer).forward(layer, hidden, **inputs)
    if not isinstance(output, Tensor):
        output, *others = output
        returned.set_others(others)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return output.to(wide) - hidden.to(wide)
