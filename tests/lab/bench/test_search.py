import math

import pytest

from lab.bench.search import find_largest


def counted(function):
    """Return the function and the list of the sizes that it is asked for."""
    asked = []

    def measure(size):
        asked.append(size)
        return function(size)

    return measure, asked


@pytest.mark.parametrize("room", [99, 100, 110, 111, 1000, 12_345, 10**6])
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_an_affine_cost_takes_few_trials(room, tolerance):
    measure, asked = counted(lambda size: 90 + 10 * size)
    found = find_largest(measure, room, tolerance=tolerance)
    largest = (room - 90) // 10
    assert found == largest if tolerance == 0 or largest < 40 else largest / 1.05 <= found <= largest
    assert len(asked) <= 4 + math.log(max(1, largest), 8)


@pytest.mark.parametrize(
    "function",
    [
        lambda size: size**2,  # convex
        lambda size: int(1000 * math.sqrt(size)),  # concave
        lambda size: 64 * -(-size // 64) * 20,  # in steps
        lambda size: max(4000, 10 * size),  # a head that sets the peak of small sizes
        lambda size: None if size > 37 else size,  # runs out of memory long before it is counted to
    ],
)
def test_whatever_the_cost_the_answer_fits_and_the_next_does_not(function):
    room = 5000
    found = find_largest(function, room)
    fits = [size for size in range(1, 2000) if (taken := function(size)) is not None and taken <= room]
    assert found == max(fits)


def test_nothing_fits_and_everything_fits():
    assert find_largest(lambda size: 10, 5) == 0
    assert find_largest(lambda size: None, 5) == 0
    assert find_largest(lambda size: 1, 5, limit=77) == 77


def test_what_is_known_is_where_it_starts():
    measure, asked = counted(lambda size: 90 + 10 * size)
    assert find_largest(measure, 1000, known={8: 170, 16: 250}) == 91
    assert asked == [91, 92]
    measure, asked = counted(lambda size: 90 + 10 * size)
    assert find_largest(measure, 1000, known={200: 2090}) == 91
    assert asked[0] == 100
