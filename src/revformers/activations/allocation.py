"""What to do with the room that is left: which steps to store, and which attention outputs to keep."""

from bisect import bisect_left
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
    """What to do with the steps of a stack.

    Attributes:
        first_stored: this step and those after it are stored.
        first_with_attention: of this step and those after it, up to the stored ones, the attention outputs are kept.

    """

    first_stored: int
    first_with_attention: int

    def stores(self, step: int) -> bool:
        """Whether step number `step` is stored."""
        return step >= self.first_stored

    def keeps_attention(self, step: int) -> bool:
        """Whether the attention outputs of step number `step` are kept."""
        return self.first_with_attention <= step < self.first_stored


def allocate(costs: Sequence[StepCost], firsts: Iterable[int], pair: int, room: int) -> Allocation:
    """Choose what makes the backward pass recompute the fewest operations.

    Stored steps are the last ones, as the states before them are then all that a rebuild needs. How many there are
    decides what room is left for attention outputs; every number is tried. At long sequences attention is most of the
    operations and its outputs are a small part of a layer's activations, so these come first; at short ones storing
    whole layers spares more operations a byte. Attention outputs are kept from the top as well: there the backward pass
    frees them before it has reached its peak.

    Args:
        costs: of every step.
        firsts: the steps that may be the first stored one; none at all may be stored in any case.
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
    attention = list(accumulate((cost.attention_operations for cost in costs), initial=0))
    best, fewest = Allocation(steps, steps), operations[steps]
    for first in (steps, *firsts):
        left = room - stored[first] - recomputed[first] - (pair if first else 0)
        if left < 0:
            continue
        start = bisect_left(outputs, outputs[first] - left)
        again = operations[first] - (attention[first] - attention[start])
        if again < fewest:
            best, fewest = Allocation(first, start), again
    return best
