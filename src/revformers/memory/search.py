"""The largest whole number whose cost is within a budget."""

from collections.abc import Callable

LARGEST = 2**40
"""Where the search ends: a cost that has not reached the budget by then does not grow."""


def largest_within(cost: Callable[[int], int], room: int, start: int = 1, tolerance: float = 0.0) -> int:
    """Return the largest number whose cost, which never falls, is within `room`; 0 where that of 1 is not.

    The next guess lies on the line through two known costs, so a cost that is nearly a line is asked for few times.

    Args:
        cost: of a number from 1.
        room: the budget.
        start: a number to try first.
        tolerance: by which share the number returned may be too small.

    """
    low, below, high, above, slope = 0, 0, 0, 0, 0
    guess = gallop = start
    halve = False
    while True:
        price = cost(guess)
        if price <= room:
            if low:
                slope = -(-(price - below) // (guess - low))
            low, below = guess, price
        else:
            high, above = guess, price
        if high and high - low <= max(1, int(tolerance * low)):
            return low
        if not high:
            # Where there is no line, or it says that no more fits, one more is tried, then two, four, ...
            ahead = (room - below) // slope if slope else 0
            guess, gallop = (low + ahead, 1) if ahead else (low + gallop, 2 * gallop)
            if guess > LARGEST:
                return low
        elif not low or halve:
            guess, halve = (low + high) // 2, False
        else:
            between = low + (high - low) * (room - below) // (above - below)
            guess, halve = min(max(between, low + 1), high - 1), True
