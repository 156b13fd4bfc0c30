"""What is alive at every moment of a step, and the same of steps of other sizes.

Two steps that run the same operators make and free the same tensors in the same order, and only the sizes of these
differ. A size is a polynomial in the number that grows: of degree one in the sequences of a batch, and of degree two in
the tokens of a sequence, as there are masks with an element for every pair of tokens. So two steps, or three, tell all
of every step between them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A dispatch mode would see tensors.
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MemoryByCategory:
    """What is alive at one moment, in bytes.

    Attributes:
        weights: parameters and buffers.
        gradients: of the parameters, once they are accumulated.
        optimizer: its states, and what its step makes.
        activations: what the forward pass of the layers left: stored activations, or checkpoints.
        states: the two fixed-point states of a reversible stack.
        side_information: what its steps keep for their inverses.
        working: what the backward pass of one layer makes: evaluated again, and gradients on their way.
        head: what comes after the last layer, forward and backward: final norm, logits, loss.
        other: what comes before the first layer, such as masks and embeddings, and tensors made before the step.

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
        """All of them together."""
        return sum(dataclasses.astuple(self))


CATEGORIES = tuple(field.name for field in dataclasses.fields(MemoryByCategory))

_INDEX = {name: index for index, name in enumerate(CATEGORIES)}


@dataclass(frozen=True, eq=False)
class Timeline:
    """The memory of one step.

    Attributes:
        operators: that it ran, in order.
        categories: the index in `CATEGORIES` of every change in what is alive, int64[changes].
        sizes: bytes that it adds, below 0 where it frees, int64[changes].
        moments: how many changes came before every moment at which memory counts, int64[moments].
        workspaces: bytes that are alive at a moment only, inside an operator, int64[moments].
        workspace_categories: their categories, int64[moments].

    """

    operators: Sequence[Any]
    categories: Numbers
    sizes: Numbers
    moments: Numbers
    workspaces: Numbers
    workspace_categories: Numbers

    def peak(self) -> MemoryByCategory:
        """Return what is alive at the first moment at which most is."""
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
    """Records the timeline of a step that runs."""

    def __init__(self) -> None:
        self._operators: list[Any] = []
        self._categories: list[int] = []
        self._sizes: list[int] = []
        self._moments: list[int] = []
        self._workspaces: list[int] = []
        self._workspace_categories: list[int] = []

    def operator(self, operator: Any) -> None:
        """Note that an operator runs."""
        self._operators.append(operator)

    def change(self, category: str, size: int) -> None:
        """Note that so many bytes more of a category are alive."""
        self._categories.append(_INDEX[category])
        self._sizes.append(size)

    def moment(self, workspace: int = 0, category: str = "other") -> None:
        """Note a moment at which what is alive counts, and a workspace of so many bytes with it."""
        changes = len(self._sizes)
        if not workspace and self._moments and self._moments[-1] == changes:
            return
        self._moments.append(changes)
        self._workspaces.append(workspace)
        self._workspace_categories.append(_INDEX[category])

    def timeline(self) -> Timeline:
        """Return what was recorded so far."""
        lists = self._categories, self._sizes, self._moments, self._workspaces, self._workspace_categories
        return Timeline(tuple(self._operators), *(np.array(values, np.int64) for values in lists))


def between(known: Mapping[int, Timeline], number: int, degree: int) -> Timeline | None:
    """Return the timeline of the step of a size, from those of smaller and larger steps that run alike, or nothing.

    Nothing where these do not run alike or are too few, where no polynomial of whole numbers meets them, and where the
    workspace of an operator, which may grow by leaps, might be part of the peak.

    Args:
        known: timelines by the number that grows. A step between two that run alike is taken to run as they do.
        number: of the step that is asked for, none of `known`.
        degree: of the polynomials that the sizes are, 1 or 2.

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
    # A workspace is no smaller in a larger step.
    result = dataclasses.replace(known[above], sizes=sizes)
    return None if result.peaks_in_workspace() else result


def _is_line(below: int, above: int, smaller: Numbers, larger: Numbers) -> bool:
    """Say whether no size can have a quadratic part: the line through one that has meets 0 below 0.

    A size is a product of lengths. Of (u n + v) (w n + x) the line has v x - u w below above at 0, which is below 0
    unless a length is mostly made of what does not grow.
    """
    return bool((abs(smaller) * above >= abs(larger) * below).all())


def _polynomial(numbers: Sequence[int], values: Sequence[Numbers], number: int) -> Numbers | None:
    """Return the values at `number` of the polynomials through whole numbers, or nothing if one has other coefficients.

    Newton's divided differences, all of which are whole numbers where the coefficients are.
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
