import random

import pytest

from revformers.planning.search import LARGEST, largest_within


@pytest.mark.parametrize("start", [1, 7])
def test_the_largest_fits_and_one_more_does_not(start):
    draw = random.Random(0)
    for _ in range(300):
        slope, jump, late, room = (draw.randint(1, 40), draw.randint(0, 90), draw.randint(0, 90), draw.randint(0, 9000))

        def cost(number, slope=slope, jump=jump, late=late):
            return max(jump * min(number, 20) + slope * number, late * number - 500, number**2 // 3)

        found = largest_within(cost, room, start)
        assert cost(found + 1) > room
        assert found == 0 or cost(found) <= room


def test_a_line_is_asked_for_few_times():
    asked = []

    def cost(number):
        asked.append(number)
        return 1000 + 7 * number

    assert largest_within(cost, 1000 + 7 * 123456 + 3) == 123456
    assert len(asked) <= 4


def test_a_tolerance_ends_the_search_early():
    found = largest_within(lambda number: number**2, 10**8, tolerance=0.01)
    assert 9900 <= found <= 10000


def test_a_line_whose_beginning_is_another_is_asked_for_few_times():
    asked = []

    def cost(number):
        asked.append(number)
        return max(5000 + 3 * number, 7 * number)

    assert largest_within(cost, 700_000) == 100_000
    assert len(asked) <= 7


def test_a_cost_that_does_not_grow_ends_the_search():
    assert LARGEST / 4 < largest_within(lambda number: 5, 5) <= LARGEST
