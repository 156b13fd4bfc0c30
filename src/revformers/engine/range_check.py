"""Detection of states and updates that fixed point cannot hold.

A state that left the range of its integers would be wrapped: it reads as an ordinary number, and the inverse undoes
even that exactly. So it does not suffice to look at states. Every step is held to the sum of its terms instead: if the
largest magnitudes of X[l-1], X[l] and the update are true, and |a| |p[l-1]| + |b| |p[l]| + |c f(p[l])| is within the
range, then X[l+1] is not wrapped, and its magnitude is true as well. The embedding is where this induction begins.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from revformers.dynamics.base import Coefficients
from revformers.engine.fixed_point import FixedPoint
from revformers.engine.proof.verdicts import Verdicts
from revformers.errors import StateRangeError
from revformers.private_api import current_backward_pass, without_dispatch_modes


class RangeCheck:
    """The magnitudes met in one forward pass. They stay on the device until they are looked at.

    Args:
        fixed_point: the format of the states.
        embedding: p[0], any shape. It counts as p[-1] too, which may be 0: the sum of the first step's terms is then
            taken to be larger than it is.

    """

    def __init__(self, fixed_point: FixedPoint, embedding: Tensor) -> None:
        self._fixed_point = fixed_point
        self._names: list[str] = []
        self._coefficients: list[Coefficients] = []
        self._extremes: list[Tensor] = list(_extremes(embedding))
        self._known: tuple[Tensor, ...] | None = None
        self._verdicts = Verdicts(at_once=False)
        self._backward_pass: int | None = None
        self._waits = True  # for somebody to look, or for a backward pass to begin that will

    def step(self, name: str, coefficients: Coefficients, update: Tensor, state: Tensor) -> None:
        """Add a step: f(p[l]) and p[l+1] in the compute dtype, any shape."""
        self._names.append(name)
        self._coefficients.append(coefficients)
        self._extremes.extend((*_extremes(update), *_extremes(state)))
        self._known = None
        self._waits = True

    @property
    def is_unseen(self) -> bool:
        """Whether nobody has looked at all magnitudes, as a backward pass does at its end, and not if it fails."""
        return self._waits or self._verdicts.are_waiting

    def largest(self) -> Tensor:
        """Return the largest magnitude of a state or a weighted update, float64[], without waiting for the device."""
        embedding, updates, states, _ = self._magnitudes()
        return torch.cat([embedding, updates, states]).amax()

    def within(self) -> Tensor:
        """Return whether all is within the range of the format, bool[], without waiting for the device."""
        *magnitudes, sums = self._magnitudes()
        held = torch.cat(magnitudes) <= self._fixed_point.maximum_magnitude
        return held.all() & (sums <= self._fixed_point.largest_sum).all()  # false for NaN

    def raise_if_exceeded(self) -> None:
        """Raise StateRangeError for the first value that is out of range; waits for the device."""
        self._waits = False
        if not self.within().item():
            raise self.error()

    def in_backward(self, _: Tensor) -> None:
        """Let the end of the current backward pass raise StateRangeError; a hook for the gradients of the states."""
        backward_pass = current_backward_pass()
        if backward_pass != self._backward_pass:
            self._backward_pass, self._waits = backward_pass, False
            self._verdicts.add(self.within(), self.error)

    def error(self) -> StateRangeError:
        """Return the error for the first value that is out of range."""
        most, most_of_sums = self._fixed_point.maximum_magnitude, self._fixed_point.largest_sum
        embedding, updates, states, sums = (values.tolist() for values in self._magnitudes())
        found = [("embedding", "has", embedding[0], most)]
        for name, update, state, total in zip(self._names, updates, states, sums, strict=True):
            found += [
                (f"update of {name}", "has", update, most),
                (f"state after {name}", "may reach, by the sum of its terms,", total, most_of_sums),
                (f"state after {name}", "has", state, most),
            ]
        what, verb, magnitude, limit = next(entry for entry in found if not entry[2] <= entry[3])
        return StateRangeError(
            f"The {what} {verb} magnitude {magnitude:g}; the limit is {limit:.10g}, because states are "
            f"{self._fixed_point}. {self._remedy()}"
        )

    def _magnitudes(self) -> tuple[Tensor, ...]:
        """Return float64 magnitudes: [1] of the embedding; [steps] of c f(p[l]), of p[l+1], and of its terms' sum."""
        if self._known is None:
            self._known = self._computed()
        return self._known

    def _computed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = self._extremes[0].device
        extremes = torch.stack(self._extremes).to(torch.float64)  # of dtypes that differ, the one that holds them all
        embedding, *steps = extremes.view(-1, 2).abs().amax(dim=1).split((1, 2 * len(self._names)))
        updates, states = steps[0].view(-1, 2).unbind(1)
        a, b, c = _weights(tuple(self._coefficients), device).unbind(1)
        updates = updates * c
        before = torch.cat([embedding, embedding, states])
        return embedding, updates, states, a * before[: len(a)] + b * before[1 : len(a) + 1] + updates

    def _remedy(self) -> str:
        if self._fixed_point.dtype == torch.int64:
            return "Lower the learning rate or the step size, or clip what grows."
        return (
            'Take 64-bit states (revformers.set_states(model, "int64"), or states: int64 in a recipe), or move the '
            "binary point (revformers.choose_states(model, batch)). If it grew in training, lower the learning rate, "
            "and go back to a checkpoint."
        )


def _extremes(values: Tensor) -> Sequence[Tensor]:
    """Return the least and the greatest of `values`; aminmax is one pass and, unlike Python's max, keeps a NaN."""
    if values.numel() == 0:
        return values.new_zeros(2).unbind()
    return torch.aminmax(values.detach())


@lru_cache(maxsize=64)
def _weights(coefficients: tuple[Coefficients, ...], device: torch.device) -> Tensor:
    """Return |a|, |b| and |c| of every step, float64[steps, 3]; kept, because copying them to a device would wait."""
    rows = [(abs(float(c.previous)), abs(float(c.current)), abs(c.update)) for c in coefficients]
    with torch.inference_mode(False), without_dispatch_modes():  # no part of the pass that happens to be the first
        return torch.tensor(rows, dtype=torch.float64).view(-1, 3).to(device)
