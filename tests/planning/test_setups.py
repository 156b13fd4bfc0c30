import pytest

import revformers as rf
from revformers.models.update_predictor import PredictorForm
from revformers.planning.setups import OVERLAPPED, Choices, bits_of, budgeted, rebuild, title_of
from revformers.setup import ORDINARY_SETUPS, STORE


def test_the_table_has_a_row_for_every_budget_of_side_information():
    setups = Choices((0, 2)).setups
    assert setups[:3] == list(ORDINARY_SETUPS)
    titles = [title_of(setup) for setup in setups]
    assert titles == ["store", "checkpoint", "serial offload", "offload", "rebuild, 0 bits", "rebuild, 2 bits"]


def test_choices_hold_for_all_setups_that_can_have_them():
    form = PredictorForm(("state",))
    choices = Choices((0, 2), predictors=form, mlp_tile=64)
    assert {setup.mlp_tile for setup in [*choices.setups, choices.budgeted(1)]} == {64}
    *others, zero, two = choices.setups
    assert not any(setup.predictors for setup in others)
    assert {setup.predictors for setup in (zero, two, choices.budgeted(1))} == {form}
    choices = Choices((0, 2), "branch")
    *others, zero, two = choices.setups
    assert {setup.steps_per_layer for setup in (zero, two, choices.budgeted(1))} == {2}
    assert {setup.steps_per_layer for setup in others} == {1}
    assert two.dynamics == rf.BlendedMidpoint("1/4", granularity="branch")


@pytest.mark.parametrize(("bits", "dynamics"), [(0, rf.Midpoint()), (3, rf.BlendedMidpoint("1/8"))])
def test_rebuilding_takes_the_bits_that_it_says(bits, dynamics):
    assert rebuild(bits).dynamics == dynamics
    assert bits_of(rebuild(bits)) == bits
    assert bits_of(STORE) is bits_of(OVERLAPPED) is None


def test_a_budget_is_one_of_the_midpoint_rule():
    setup = budgeted(2**20)
    assert (setup.dynamics, setup.activations) == (rf.Midpoint(), rf.Budget(2**20))
    assert title_of(setup) == "budget, 0 bits"


def test_one_bit_is_singular():
    assert [title_of(rebuild(bits)) for bits in (0, 1, 2)] == ["rebuild, 0 bits", "rebuild, 1 bit", "rebuild, 2 bits"]
