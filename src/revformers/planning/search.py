"""Searches for the largest whole number whose cost is within a budget."""

from collections.abc import Callable, Mapping

LARGEST = 2**40
"""Upper end of the search: a cost that is still within the budget here is assumed not to grow."""


def largest_within(cost: Callable[[int], int], room: int, start: int = 1, tolerance: float = 0.0) -> int:
    """Return the largest number whose cost is within `room`, or 0 if even the cost of 1 is not.

    The cost must not decrease. The next guess is where the line through two known costs crosses the budget, so a linear
    cost is evaluated four times.

    Args:
        cost: the cost of a number, from 1.
        room: the budget.
        start: the first number to try.
        tolerance: share by which the returned number may be too small.

    """
    known: dict[int, int] = {}
    spans: list[int] = []
    low, high, guess = 0, 0, start
    while True:
        known[guess] = cost(guess)
        if known[guess] <= room:
            low = guess
        else:
            high = guess
        line = _where_a_line_leaves(known, guess, room)
        if not high:
            # If the line is right, one more than its answer is too many. If no line grows, try twice as many.
            if low >= LARGEST:
                return low
            guess = min(max(low, line) + 1 if line else 2 * low, LARGEST)
            continue
        spans.append(high - low)
        if spans[-1] <= max(1, int(tolerance * low)):
            return low
        # On a curve, the guesses may all come from one side.
        slow = len(spans) > 2 and 2 * spans[-1] > spans[-3]
        guess = (low + high) // 2 if slow or not line else min(max(line, low + 1), high - 1)


def _where_a_line_leaves(known: Mapping[int, int], last: int, room: int) -> int:
    """Return the largest number within `room` by the line through the cost of `last` and the one nearest to `room`.

    Return 0 if there is no such line. A single cost is assumed to be proportional to its number.
    """
    others = [number for number in known if number != last]
    if not others:
        return last * room // known[last] if known[last] else 0
    other = min(others, key=lambda number: abs(known[number] - room))
    rise = known[other] - known[last]
    return max(0, last + (room - known[last]) * (other - last) // rise) if rise else 0
