"""Allocation of a budget: which steps are stored, and whose attention outputs are kept."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class StepCost:
    """The memory that a step takes and the work that it spares; bytes and floating-point operations.

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
    """The split of a stack: its first steps are computed again, its last steps are stored.

    Attributes:
        rebuilds: whether the first ones are rebuilt; otherwise their inputs are kept.
        first_stored: this step and those after it are stored.
        first_with_attention: of this step and those after it, up to the stored ones, the attention outputs are kept.

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
    """Choose what makes the backward pass compute the fewest operations again.

    Rebuilt steps are the first ones, as undoing them takes the states after them and no others. Attention outputs are
    kept of the last of the steps that are computed again: there the backward pass frees them before it has reached its
    peak. How many steps are stored decides what room is left for attention outputs; every number is tried. At long
    sequences attention is most of the operations and its outputs are a small part of a layer's activations, so these
    come first; at short ones whole layers spare more operations a byte. A kept input spares no operations, but where
    the inputs of all steps take less than the pair of states, they leave more room.

    Args:
        costs: of every step.
        pair: bytes that are kept where any step is rebuilt.
        room: bytes that may be kept; enough to store nothing.
        may_rebuild: whether steps may be rebuilt.

    Returns:
        The choice; of equal ones, that which stores the fewest steps.

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
