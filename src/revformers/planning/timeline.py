"""Records the memory at every moment of a step, and interpolates it for steps of other sizes.

Two steps that run the same operators make and free the same tensors in the same order; only the sizes differ. A size is
a polynomial in the number that grows: of degree one in the sequences of a batch, and of degree two in the tokens of a
sequence, because some masks have an element for every pair of tokens. Two or three steps therefore determine all the
steps between them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# NumPy, because a dispatch mode would see tensors.
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MemoryByCategory:
    """Memory at one moment, in bytes.

    Attributes:
        weights: parameters and buffers.
        gradients: accumulated gradients of the parameters.
        optimizer: states of the optimizer, and the tensors that its step makes.
        activations: stored activations or checkpoints from the forward pass of the layers.
        states: the two fixed-point states of a reversible stack.
        side_information: bits that the steps keep for their inverses.
        working: tensors of one layer's backward pass: recomputed activations and intermediate gradients.
        head: tensors after the last layer, forward and backward: final norm, logits, loss.
        other: tensors before the first layer, such as masks and embeddings, and tensors made before the step.

    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    states: int = 0
    side_information: int = 0
    working: int = 0
    head: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """Sum of all categories."""
        return sum(dataclasses.astuple(self))


CATEGORIES = tuple(field.name for field in dataclasses.fields(MemoryByCategory))

_INDEX = {name: index for index, name in enumerate(CATEGORIES)}


@dataclass(frozen=True, eq=False)
class Timeline:
    """The memory of one step.

    Attributes:
        operators: the operators that ran, in order.
        categories: the index in `CATEGORIES` of every allocation or release, int64[changes].
        sizes: bytes allocated, negative for a release, int64[changes].
        moments: number of changes before every moment at which memory counts, int64[moments].
        workspaces: bytes that exist at one moment only, inside an operator, int64[moments].
        workspace_categories: categories of the workspaces, int64[moments].

    """

    operators: Sequence[Any]
    categories: Numbers
    sizes: Numbers
    moments: Numbers
    workspaces: Numbers
    workspace_categories: Numbers

    def without_workspaces(self) -> "Timeline":
        """Return the memory of the same step with fused kernels, which allocate nothing but their results."""
        return dataclasses.replace(self, workspaces=np.zeros_like(self.workspaces))

    def peak(self) -> MemoryByCategory:
        """Return the memory at the peak, at its first moment."""
        moment = self._peak_moment()
        if moment is None:
            return MemoryByCategory()
        changes = int(self.moments[moment])
        held = np.zeros(len(CATEGORIES), np.int64)
        np.add.at(held, self.categories[:changes], self.sizes[:changes])
        held[self.workspace_categories[moment]] += self.workspaces[moment]
        return MemoryByCategory(**dict(zip(CATEGORIES, held.tolist(), strict=True)))

    def peaks_in_workspace(self) -> bool:
        """Say whether a workspace is part of the peak."""
        moment = self._peak_moment()
        return moment is not None and bool(self.workspaces[moment])

    def _peak_moment(self) -> int | None:
        if not len(self.moments):
            return None
        alive = np.concatenate([[0], self.sizes.cumsum()])
        return int((alive[self.moments] + self.workspaces).argmax())

    def runs_like(self, other: "Timeline") -> bool:
        """Say whether two steps run the same operators, and make and free the same tensors."""
        return (
            np.array_equal(self.moments, other.moments)
            and np.array_equal(self.categories, other.categories)
            and np.array_equal(self.workspace_categories, other.workspace_categories)
            and np.array_equal(np.sign(self.sizes), np.sign(other.sizes))
            and self.operators == other.operators
        )


class Recorder:
    """Records the timeline of a running step."""

    def __init__(self) -> None:
        self._operators: list[Any] = []
        self._categories: list[int] = []
        self._sizes: list[int] = []
        self._moments: list[int] = []
        self._workspaces: list[int] = []
        self._workspace_categories: list[int] = []

    def operator(self, operator: Any) -> None:
        """Record an operator."""
        self._operators.append(operator)

    def change(self, category: str, size: int) -> None:
        """Record that `size` bytes of a category are allocated; a negative size releases them."""
        self._categories.append(_INDEX[category])
        self._sizes.append(size)

    def moment(self, workspace: int = 0, category: str = "other") -> None:
        """Record a moment at which memory counts, and a workspace of `workspace` bytes at that moment."""
        changes = len(self._sizes)
        if not workspace and self._moments and self._moments[-1] == changes:
            return
        self._moments.append(changes)
        self._workspaces.append(workspace)
        self._workspace_categories.append(_INDEX[category])

    def timeline(self) -> Timeline:
        """Return the timeline so far."""
        lists = self._categories, self._sizes, self._moments, self._workspaces, self._workspace_categories
        return Timeline(tuple(self._operators), *(np.array(values, np.int64) for values in lists))


def between(known: Mapping[int, Timeline], number: int, degree: int) -> Timeline | None:
    """Return the timeline of a step, interpolated from smaller and larger steps that run alike, or None.

    Return None if these do not run alike or are too few, if no polynomial with integer coefficients fits them, or if an
    operator's workspace, which may grow in jumps, might be part of the peak.

    Args:
        known: timelines by the number that grows. A step between two that run alike is assumed to run like them.
        number: the number of the requested step, which is not in `known`.
        degree: the degree of the polynomials that give the sizes, 1 or 2.

    """
    below = max((other for other in known if other < number), default=None)
    above = min((other for other in known if other > number), default=None)
    if below is None or above is None or not known[below].runs_like(known[above]):
        return None
    sizes = _polynomial((below, above), (known[below].sizes, known[above].sizes), number)
    if degree == 2 and not _is_line(below, above, known[below].sizes, known[above].sizes):
        third = [other for other in known if other not in (below, above) and known[other].runs_like(known[below])]
        if not third:
            return None
        numbers = below, above, min(third, key=lambda other: abs(other - number))
        sizes = _polynomial(numbers, [known[other].sizes for other in numbers], number)
    if sizes is None:
        return None
    # A larger step has no smaller workspace.
    result = dataclasses.replace(known[above], sizes=sizes)
    return None if result.peaks_in_workspace() else result


def _is_line(below: int, above: int, smaller: Numbers, larger: Numbers) -> bool:
    """Say whether every size is linear: the line through two values of a quadratic size is negative at 0.

    A size is a product of lengths. The line through (u n + v) (w n + x) at `below` and `above` has the value
    v x - u w below above at 0, which is negative unless a length consists mostly of a constant part.
    """
    return bool((abs(smaller) * above >= abs(larger) * below).all())


def _polynomial(numbers: Sequence[int], values: Sequence[Numbers], number: int) -> Numbers | None:
    """Return the values of the interpolating polynomials at `number`, or None if a coefficient is not an integer.

    Newton's divided differences, which are integers if the coefficients are.
    """
    differences = list(values)
    for order in range(1, len(numbers)):
        for index in range(len(numbers) - 1, order - 1, -1):
            step = numbers[index] - numbers[index - order]
            difference = differences[index] - differences[index - 1]
            if (difference % step).any():
                return None
            differences[index] = difference // step
    result = differences[-1]
    for index in range(len(numbers) - 2, -1, -1):
        result = result * (number - numbers[index]) + differences[index]
    return result
