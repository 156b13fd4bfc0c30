"""The largest batch or the longest sequence that fits."""

from collections.abc import Callable, Mapping

LARGEST_STEP = 8
"""By how much a size that fits is multiplied at most for the next trial: two small sizes say little of a large one."""


def find_largest(
    measure: Callable[[int], int | None],
    room: int,
    *,
    known: Mapping[int, int] | None = None,
    limit: int | None = None,
    tolerance: float = 0.0,
) -> int:
    """Return the largest size that was found to fit, or 0 where 1 does not fit.

    Memory is nearly affine in the size, so that the line through the two largest sizes measured so far says where to
    try next. Nothing is taken from it: the size returned was measured to fit, and one that is larger by 1, or by
    `tolerance`, was measured not to.

    Args:
        measure: the bytes that a size takes, or None where it ran out of memory.
        room: bytes that there are.
        known: bytes of sizes that were measured otherwise, for the first guess.
        limit: the largest size to try.
        tolerance: the share by which the smallest size known not to fit may lie above the answer.

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
            # Every other trial halves the interval, so that a line which misleads costs twice the bisection at most.
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
    """Return the size to try: where the line meets `room`, or the gap beyond what fits to prove it the largest."""
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
