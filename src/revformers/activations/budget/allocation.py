"""Allocation of a budget: which steps are stored, and whose attention outputs are kept."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class StepCost:
    """The memory that keeping parts of a step needs, and the floating-point operations that it saves.

    Attributes:
        stored: bytes of its activations.
        input: bytes of the input of its field.
        side_information: bytes that undoing the step needs.
        outputs: bytes of its attention outputs.
        operations: operations of the field, which a second evaluation costs.
        attention_operations: the part of them that kept attention outputs save.

    """

    stored: int = 0
    input: int = 0
    side_information: int = 0
    outputs: int = 0
    operations: int = 0
    attention_operations: int = 0


@dataclass(frozen=True)
class Allocation:
    """The split of a stack: its first steps are computed again, its last steps are stored.

    Attributes:
        rebuilds: whether the first steps are rebuilt; otherwise their inputs are kept.
        first_stored: the number of the first stored step.
        first_with_attention: the number of the first step whose attention outputs are kept; so are those of the steps
            between it and the stored ones.

    """

    rebuilds: bool
    first_stored: int
    first_with_attention: int

    def stores(self, step: int) -> bool:
        """Whether step number `step` is stored."""
        return step >= self.first_stored

    def keeps_attention(self, step: int) -> bool:
        """Whether the attention outputs of step number `step` are kept."""
        return self.first_with_attention <= step < self.first_stored


def allocate(costs: Sequence[StepCost], pair: int, room: int, *, may_rebuild: bool) -> Allocation:
    """Choose the allocation with which the backward pass repeats the fewest operations.

    The first steps are rebuilt, because undoing them requires only the states after them. Of the steps that are
    computed again, the last ones keep attention outputs, because the backward pass frees those before its peak. The
    number of stored steps determines the room for attention outputs; every number is tried. At long sequences
    attention is most of the operations and its outputs are a small part of a layer's activations, so they come first;
    at short ones whole layers save more operations per byte. A kept input saves no operations, but if the inputs of
    all steps need less memory than the pair of states, they leave more room.

    Args:
        costs: the cost of every step.
        pair: bytes that are kept if any step is rebuilt.
        room: bytes that may be kept, enough for an allocation that stores no step.
        may_rebuild: whether steps may be rebuilt.

    Returns:
        The best allocation; of equal ones, the one that stores the fewest steps.

    """
    stored = list(accumulate((cost.stored for cost in reversed(costs)), initial=0))[::-1]
    inputs, side_information, outputs, operations, attention = (
        list(accumulate((getattr(cost, name) for cost in costs), initial=0))
        for name in ("input", "side_information", "outputs", "operations", "attention_operations")
    )
    best: tuple[int, Allocation] | None = None
    for first in range(len(costs), -1, -1):
        for rebuilds in (True, False) if may_rebuild and first else (False,):
            left = room - stored[first] - (pair + side_information[first] if rebuilds else inputs[first])
            if left < 0:
                continue
            start = bisect_left(outputs, outputs[first] - left)
            again = operations[first] - (attention[first] - attention[start])
            if best is None or again < best[0]:
                best = again, Allocation(rebuilds, first, start)
    assert best is not None
    return best[1]
