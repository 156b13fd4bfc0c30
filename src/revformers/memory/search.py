"""The largest whole number whose cost is within a budget."""

from collections.abc import Callable

LARGEST = 2**40
"""Where the search ends: a cost that has not reached the budget by then does not grow."""


def largest_within(cost: Callable[[int], int], room: int) -> int:
    """Return the largest number whose cost, which never falls, is within `room`; 0 where that of 1 is not.

    The next guess lies on the line through two known costs, so a cost that is nearly a line is asked for few times.
    """
    low, below = 1, cost(1)
    if below > room:
        return 0
    high, above = 2, cost(2)
    slope, step = above - below, 1
    while above <= room:
        # Where the line says that no more fits, one more is tried, then two, four, ...
        step = max(2 * step if step < (room - above) // max(1, slope) else 1, (room - above) // max(1, slope))
        low, below, high = high, above, high + step
        if high > LARGEST:
            return low
        above = cost(high)
        slope = -(-(above - below) // step)
    halve = False
    while high - low > 1:
        guess = (low + high) // 2 if halve else low + (high - low) * (room - below) // (above - below)
        guess = min(max(guess, low + 1), high - 1)
        price = cost(guess)
        if price > room:
            high, above = guess, price
        else:
            low, below = guess, price
        halve = not halve
    return low
