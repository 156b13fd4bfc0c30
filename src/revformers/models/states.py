"""The format of a reversible model's states: setting it, and choosing the binary point from a batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from revformers.engine.replay import RandomState
from revformers.engine.state_format import StateFormat, parse_states
from revformers.models.batch import inputs_of
from revformers.models.forward import ReversibleStack
from revformers.models.parts import require_reversible

Result = TypeVar("Result")

HEAD_ROOM = 4.0
"""How many times the largest magnitude that was met a format should hold; see also `format_for`."""


def set_states(model: nn.Module, states: StateFormat | str) -> None:
    """Set the format of the states of a reversible model.

    Args:
        model: a reversible model.
        states: as in `make_reversible`.

    Raises:
        TypeError: if `states` is neither a format nor text.
        ValueError: if the model is not reversible, or there is no such format.

    """
    require_reversible(model).states = parse_states(states)


def choose_states(model: nn.Module, batch: Mapping[str, Any], head_room: float = HEAD_ROOM) -> StateFormat:
    """Choose the binary point of a reversible model's 32-bit states from a batch, set it, and return the format.

    Runs one forward pass in 64-bit states, without gradients and in the model's current mode, and reads the largest
    magnitude of its states and updates. The format has the most binary digits after the point, 8 to 16, whose range
    holds that magnitude times `head_room`, and times |a| + |b| of the steps if that exceeds 1. It is ``"int32"`` with
    these digits if the model's states are int32, and ``"auto"`` otherwise. The random state does not change.

    Args:
        model: a reversible model.
        batch: keyword arguments of the model, e.g. ``{"input_ids": int64[batch, tokens]}``. Tensors are moved to the
            model's device.
        head_room: at least 2, because a step adds up terms that may each be as large as the largest state.

    Raises:
        TypeError: if the batch is no mapping, or `head_room` is no number.
        ValueError: if the model is not reversible, `head_room` is below 2, the pass has no states (as within
            `revformers.ordinary`), or 32-bit states do not hold so much.
        StateRangeError: if not even 64-bit states hold the states of this batch.

    """
    reversible = require_reversible(model)
    if isinstance(head_room, bool) or not isinstance(head_room, int | float):
        raise TypeError(f"The head room of states is a number, not {head_room!r}.")
    if not (math.isfinite(head_room) and head_room >= 2):
        raise ValueError(f"The head room of states is at least 2, not {head_room}.")
    device = next(model.parameters()).device
    most = StateFormat("int32" if reversible.states.kind == "int32" else "auto")
    inputs = inputs_of(batch, device)
    with torch.no_grad(), RandomState.of(device).restored():
        _, magnitude = run_in_64_bits(reversible, lambda: model(**inputs))
    if not magnitude:
        raise ValueError(
            "The forward pass had no states to choose a format from; call choose_states outside of "
            "revformers.ordinary, with a batch whose embeddings are not all zero."
        )
    reversible.states = format_for(reversible, most, magnitude, head_room)
    return reversible.states


def run_in_64_bits(reversible: ReversibleStack, run: Callable[[], Result]) -> tuple[Result, float]:
    """Return what `run` returns, whose passes have 64-bit states, and the largest magnitude that they met."""
    before = reversible.states
    with reversible.range_watch.set_aside():
        try:
            reversible.states = StateFormat("int64")
            return run(), reversible.largest_magnitude
        finally:
            reversible.states = before


def format_for(
    reversible: ReversibleStack, states: StateFormat, magnitude: float, head_room: float = HEAD_ROOM
) -> StateFormat:
    """Return `states`, with as few binary digits less that they hold magnitudes like this one.

    A step adds |a| + |b| times a state to an update, so the format holds magnitude * head_room * max(|a| + |b|, 1).

    Args:
        reversible: the stack, which has the coefficients.
        states: the format with the most digits.
        magnitude: the largest of a state or an update.
        head_room: the multiple of it to hold.

    Raises:
        ValueError: if 32-bit states do not hold so much.

    """
    added = max(float(abs(step.previous) + abs(step.current)) for step in reversible.steps)
    return states.that_holds(head_room * magnitude * max(added, 1.0))
