"""Step times of several arms in one process, taken in turns.

A machine's speed drifts, and other programs come and go, so times of two separate runs cannot be compared. Here every
round runs each arm once, and ratios are formed within a round. The order rotates from round to round and is reversed in
every other round, so that no arm always has the same position or neighbour.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepTimes:
    """The times of every arm.

    Attributes:
        seconds: for each arm, one figure per round.

    """

    seconds: dict[str, list[float]]

    def summary(self, arm: str) -> "Quartiles":
        """Return the quartiles of an arm's seconds per step."""
        return Quartiles.of(self.seconds[arm])

    def ratio(self, arm: str, reference: str) -> "Quartiles":
        """Return the quartiles of time of `arm` over time of `reference`, each ratio taken within one round."""
        pairs = zip(self.seconds[arm], self.seconds[reference], strict=True)
        return Quartiles.of([one / other for one, other in pairs])


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of a sample."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Return the quartiles of `values`; for a single value, that value three times."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def measure_step_times(
    steps: Mapping[str, Callable[[int], object]],
    rounds: int,
    warm_up_rounds: int = 1,
    *,
    device: str = "cpu",
    before_step: Callable[[str, int], object] = lambda arm, round_number: None,
    after_step: Callable[[str, int], object] = lambda arm, round_number: None,
    on_round: Callable[[int], object] = lambda round_number: None,
) -> StepTimes:
    """Time the steps of several arms in turns.

    Args:
        steps: for each arm, the call to time; it receives the round's number from 0, warm-up included.
        rounds: number of timed rounds; every arm takes one step in each.
        warm_up_rounds: number of untimed rounds before them.
        device: synchronised before the clock is read if it works asynchronously.
        before_step: called outside the timing before each step with the arm and the round, e.g. to make a batch.
        after_step: called outside the timing after each step with the arm and the round, e.g. to update weights.
        on_round: called after each round with its number.

    Raises:
        ValueError: if there are no arms or no rounds, or the number of warm-up rounds is negative.

    """
    if not steps or rounds < 1 or warm_up_rounds < 0:
        raise ValueError("Step times need at least one arm and one round, and no negative number of warm-up rounds.")
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(warm_up_rounds + rounds):
        first = round_number % len(names)
        order = names[first:] + names[:first]
        for name in order if round_number % 2 == 0 else reversed(order):
            before_step(name, round_number)
            _synchronize(device)
            started = time.perf_counter()
            steps[name](round_number)
            _synchronize(device)
            elapsed = time.perf_counter() - started
            if round_number >= warm_up_rounds:
                seconds[name].append(elapsed)
            after_step(name, round_number)
        on_round(round_number)
    return StepTimes(seconds)


def _synchronize(device: str) -> None:
    """Wait until a GPU has finished its queue."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
