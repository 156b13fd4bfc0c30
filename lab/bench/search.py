"""The largest batch or the longest sequence that fits."""

from collections.abc import Callable, Mapping

LARGEST_STEP = 8
"""Largest factor between a size that fits and the next trial: two small sizes say little about a large one."""


def find_largest(
    measure: Callable[[int], int | None],
    room: int,
    *,
    known: Mapping[int, int] | None = None,
    limit: int | None = None,
    tolerance: float = 0.0,
) -> int:
    """Return the largest size that was measured to fit, or 0 if 1 does not fit.

    Memory is nearly affine in the size, so the line through the two largest measured sizes gives the next trial. The
    line never decides the answer: the returned size was measured to fit, and one that is larger by 1, or by
    `tolerance`, was measured not to fit.

    Args:
        measure: returns the bytes that a size needs, or None if it ran out of memory.
        room: bytes available.
        known: bytes of sizes that were measured elsewhere, for the first guess.
        limit: the largest size to try.
        tolerance: the share by which the smallest size known not to fit may exceed the answer.

    """
    line = dict(known or {})
    fits, fails = 0, None
    halve = False
    while fits != limit:
        gap = max(1, int(tolerance * fits))
        size = _next(line, room, fits, gap)
        if limit is not None:
            size = min(size, limit)
        if fails is not None:
            if fails - fits <= gap:
                break
            # Every other trial halves the interval, so a misleading line takes at most twice as long as bisection.
            size = min(size, (fits + fails) // 2 if halve else fails - 1)
            halve = not halve
        taken = measure(size)
        if taken is not None:
            line[size] = taken
        if taken is not None and taken <= room:
            fits = size
        else:
            fails = size
    return fits


def _next(line: Mapping[int, int], room: int, fits: int, gap: int) -> int:
    """Return the next size to try: where the line reaches `room`, or `gap` beyond the largest size known to fit."""
    points = sorted(line.items())
    if not points:
        return 1
    if len(points) == 1:
        ((only, taken),) = points
        return 2 * only if taken <= room else max(1, only // 2)
    (one, bytes_of_one), (other, bytes_of_other) = points[-2:]
    slope = max(1.0, (bytes_of_other - bytes_of_one) / (other - one))
    guess = other + int((room - bytes_of_other) // slope)
    farthest = LARGEST_STEP * max(size for size, taken in [(1, 0), *points] if taken <= room)
    return max(fits + gap, min(guess, farthest))
