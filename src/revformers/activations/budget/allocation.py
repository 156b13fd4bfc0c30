"""What to do with the room that is left: which steps to store, which inputs and which attention outputs to keep."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, product


@dataclass(frozen=True)
class StepCost:
    """What one step takes and spares; bytes and floating-point operations.

    Attributes:
        stored: bytes of its activations.
        input: bytes of the input of its field.
        side_information: bytes that undoing the step takes.
        outputs: bytes of its attention outputs.
        operations: of the field, which computing it again takes.
        attention_operations: of these, those that the attention outputs spare.

    """

    stored: int = 0
    input: int = 0
    side_information: int = 0
    outputs: int = 0
    operations: int = 0
    attention_operations: int = 0


@dataclass(frozen=True)
class Allocation:
    """What to do with the steps of a stack, from the first: rebuild, then keep inputs, then store.

    Attributes:
        first_with_input: of this step and those after it, up to the stored ones, the inputs are kept.
        first_stored: this step and those after it are stored.
        first_with_attention: of this step and those after it, up to the stored ones, the attention outputs are kept.

    """

    first_with_input: int
    first_stored: int
    first_with_attention: int

    def rebuilds(self, step: int) -> bool:
        """Whether step number `step` is undone."""
        return step < self.first_with_input

    def stores(self, step: int) -> bool:
        """Whether step number `step` is stored."""
        return step >= self.first_stored

    def keeps_attention(self, step: int) -> bool:
        """Whether the attention outputs of step number `step` are kept."""
        return self.first_with_attention <= step < self.first_stored


@lru_cache(maxsize=16)
def allocate(
    costs: Sequence[StepCost], pair: int, room: int, first_stored: Sequence[int], first_with_input: Sequence[int]
) -> Allocation:
    """Choose what makes the backward pass recompute the fewest operations.

    Rebuilt steps are the first ones, as the states from behind them are all that undoing them needs. What is kept of
    the others is kept from the top as well: there the backward pass frees it before it has reached its peak. How many
    steps are stored, and of how many the inputs are kept, decides what room is left for attention outputs; every pair
    of numbers is tried. At long sequences attention is most of the operations and its outputs are a small part of a
    layer's activations, so these come first; at short ones whole layers spare more operations a byte. A kept input
    spares none: of choices that spare as much, the one that comes first among the arguments is taken.

    Args:
        costs: of every step.
        pair: bytes that are kept where any step is rebuilt.
        room: bytes that may be kept.
        first_stored: the steps that may be the first stored one, or the number of steps, for none at all.
        first_with_input: the steps from which on inputs may be kept, or the number of steps; 0 rebuilds nothing.

    Returns:
        The choice. Some choice must fit.

    """
    stored = list(accumulate((cost.stored for cost in reversed(costs)), initial=0))[::-1]
    inputs, side_information, outputs, operations, attention = (
        list(accumulate((getattr(cost, name) for cost in costs), initial=0))
        for name in (
            "input",
            "side_information",
            "outputs",
            "operations",
            "attention_operations",
        )
    )
    best: tuple[int, Allocation] | None = None
    for first, kept in product(first_stored, first_with_input):
        left = room - stored[first] - (inputs[first] - inputs[kept]) - side_information[kept] - (pair if kept else 0)
        if kept > first or left < 0:
            continue
        start = bisect_left(outputs, outputs[first] - left)
        again = operations[first] - (attention[first] - attention[start])
        if best is None or again < best[0]:
            best = again, Allocation(kept, first, start)
    assert best is not None
    return best[1]
