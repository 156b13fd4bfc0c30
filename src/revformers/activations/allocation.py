"""What to do with the room that is left: which steps to store, and which attention outputs to keep."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class StepCost:
    """What one step takes and spares; bytes and floating-point operations.

    Attributes:
        stored: bytes of its activations.
        recomputed: bytes that are kept in their place: side information, or the input of the field.
        outputs: bytes of its attention outputs.
        operations: of the whole field.
        attention_operations: of them, those that the attention outputs spare.

    """

    stored: int
    recomputed: int
    outputs: int
    operations: int
    attention_operations: int


@dataclass(frozen=True)
class Allocation:
    """The steps from `first_stored` are stored; of those before `attention_until` the attention outputs are kept."""

    first_stored: int
    attention_until: int


def allocate(costs: Sequence[StepCost], firsts: Iterable[int], pair: int, room: int) -> Allocation:
    """Choose what makes the backward pass recompute the fewest operations.

    Stored steps are the last ones, as the states before them are then all that a rebuild needs. How many there are
    decides what room is left for attention outputs; every number is tried. At
    long sequences attention is most of the operations and its outputs are a small part of a layer's activations, so
    these come first; at short ones storing whole layers spares more operations a byte.

    Args:
        costs: of every step.
        firsts: the steps that may be the first stored one; that after the last step, which stores nothing, always may.
        pair: bytes that are kept where not all steps are stored.
        room: bytes that may be kept.

    Returns:
        The choice; where nothing fits, that of keeping nothing.

    """
    steps = len(costs)
    stored = list(accumulate((cost.stored for cost in reversed(costs)), initial=0))[::-1]
    recomputed = list(accumulate((cost.recomputed for cost in costs), initial=0))
    outputs = list(accumulate((cost.outputs for cost in costs), initial=0))
    operations = list(accumulate((cost.operations for cost in costs), initial=0))
    spared = list(accumulate((cost.attention_operations for cost in costs), initial=0))
    best, fewest = Allocation(steps, 0), operations[steps]
    for first in (steps, *firsts):
        left = room - stored[first] - recomputed[first] - (pair if first else 0)
        if left < 0:
            continue
        until = bisect_right(outputs, left, hi=first + 1) - 1
        again = operations[first] - spared[until]
        if again < fewest:
            best, fewest = Allocation(first, until), again
    return best
