import pytest

import revformers as rf
from revformers.planning.setups import bits_of, budgeted, rebuild, setups, title_of
from revformers.setup import ORDINARY_SETUPS, STORE


def test_the_table_has_a_row_for_every_budget_of_side_information():
    assert setups((0, 2))[:3] == list(ORDINARY_SETUPS)
    titles = [title_of(setup) for setup in setups((0, 2))]
    assert titles == ["store", "checkpoint", "offload", "rebuild, 0 bits", "rebuild, 2 bits"]


@pytest.mark.parametrize(("bits", "dynamics"), [(0, rf.Midpoint()), (3, rf.BlendedMidpoint("1/8"))])
def test_rebuilding_takes_the_bits_that_it_says(bits, dynamics):
    assert rebuild(bits).dynamics == dynamics
    assert bits_of(rebuild(bits)) == bits
    assert bits_of(STORE) is None


def test_a_budget_is_one_of_the_midpoint_rule():
    setup = budgeted(2**20)
    assert (setup.dynamics, setup.activations) == (rf.Midpoint(), rf.Budget(2**20))
    assert title_of(setup) == "budget, 0 bits"


def test_one_bit_is_singular():
    assert [title_of(rebuild(bits)) for bits in (0, 1, 2)] == ["rebuild, 0 bits", "rebuild, 1 bit", "rebuild, 2 bits"]
