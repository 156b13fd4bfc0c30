"""The largest whole number whose cost is within a budget."""

from collections.abc import Callable, Mapping

LARGEST = 2**40
"""Where the search ends: a cost that has not reached the budget by then does not grow."""


def largest_within(cost: Callable[[int], int], room: int, start: int = 1, tolerance: float = 0.0) -> int:
    """Return the largest number whose cost, which never falls, is within `room`; 0 where that of 1 is not.

    The next guess lies where the line through two known costs leaves the room, so a cost that is a line is asked for
    four times.

    Args:
        cost: of a number from 1.
        room: the budget.
        start: a number to try first.
        tolerance: by which share the number returned may be too small.

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
            # One more than the line says is too many where it is right. Where no line grows, twice as many are tried.
            if low >= LARGEST:
                return low
            guess = min(max(low, line) + 1 if line else 2 * low, LARGEST)
            continue
        spans.append(high - low)
        if spans[-1] <= max(1, int(tolerance * low)):
            return low
        # Lines along a curve may come closer from one side only.
        slow = len(spans) > 2 and 2 * spans[-1] > spans[-3]
        guess = (low + high) // 2 if slow or not line else min(max(line, low + 1), high - 1)


def _where_a_line_leaves(known: Mapping[int, int], last: int, room: int) -> int:
    """Return the largest number within `room` by the line through the cost of `last` and the one nearest to `room`.

    0 where there is no such line. One cost alone is taken to be in proportion.
    """
    others = [number for number in known if number != last]
    if not others:
        return last * room // known[last] if known[last] else 0
    other = min(others, key=lambda number: abs(known[number] - room))
    rise = known[other] - known[last]
    return max(0, last + (room - known[last]) * (other - last) // rise) if rise else 0
