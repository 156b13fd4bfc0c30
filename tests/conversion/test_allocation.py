import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import revformers as rf
from revformers.conversion.allocation import LayerCosts, uniform_blends


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=3), st.floats(0, 3))
def test_the_blends_are_those_that_trying_everything_finds(divergence, bits):
    costs = LayerCosts(*zip(*divergence, strict=True))
    chosen = costs.choose(bits)
    capacity = bits * len(divergence) + 1e-9

    def spent(blends):
        return sum(blend.denominator.bit_length() - 1 for blend in blends)

    assert spent(chosen) <= capacity
    every = itertools.product([Fraction(1, 2**number) for number in range(9)], repeat=len(divergence))
    best = min(costs.predicted(blends) for blends in every if spent(blends) <= capacity)
    assert costs.predicted(chosen) == pytest.approx(best)


def test_no_layer_gets_more_bits_than_there_are_and_one_that_costs_nothing_gets_none():
    assert LayerCosts((0.0, 1.0, 1e9), (0.0, 1.0, 1e9)).choose(8) == [1, Fraction(1, 256), Fraction(1, 256)]
    assert LayerCosts((0.0, 1.0, 4.0), (0.0, 1.0, 4.0)).choose(1) == [1, Fraction(1, 2), Fraction(1, 4)]


def test_a_first_bit_saves_what_an_error_that_stays_costs():
    assert LayerCosts((1.0, 1.0), (1.0, 9.0)).choose(0.5) == [1, Fraction(1, 2)]
    assert LayerCosts((1.0, 1.0), (9.0, 1.0)).choose(0.5) == [Fraction(1, 2), 1]


def test_of_a_lead_the_part_is_taken_that_costs_least():
    costs = LayerCosts((1.0, 2.0, 0.0), (3.0, 0.0, 0.0))
    assert costs.lead_parts == [0.75, 0.0, 0.0]
    part, other = 0.75, 0.7
    assert part**2 * 1.0 + (1 - part) ** 2 * 3.0 < other**2 * 1.0 + (1 - other) ** 2 * 3.0


def test_a_budget_is_met_in_the_mean():
    assert uniform_blends(0, 3) == [1, 1, 1]
    assert uniform_blends(2, 2) == [Fraction(1, 4)] * 2
    for bits in (0.25, 0.5, 1.75, 3.1):
        blends = uniform_blends(bits, 40)
        spent = [rf.BlendedMidpoint(blend).side_information_bits(0) for blend in blends]
        assert sum(spent) / 40 == pytest.approx(bits)
        assert max(spent) - min(spent) <= 1
