import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import revformers as rf
from revformers.dynamics.base import Coefficients, finite_step, times


@given(st.integers(1, 256), st.integers(1, 256))
def test_side_information_counts_the_neighbours_that_a_contraction_merges(numerator, denominator):
    merged = math.ceil(Fraction(denominator, numerator))
    expected = math.ceil(math.log2(merged)) if merged > 1 else 0
    assert Coefficients(Fraction(numerator, denominator), Fraction(0), 1.0).side_information_bits == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Coefficients(Fraction(1, 1000), Fraction(1), 1.0), "do not fit into a byte"),
        (lambda: Coefficients(Fraction(1), Fraction(2000), 1.0), "current state has a term beyond 1024"),
        (lambda: Coefficients(Fraction(1), Fraction(0), math.nan), "update is nan; choose a finite number"),
        (lambda: Coefficients(Fraction(1), Fraction(0), math.inf), "update is inf; choose a finite number"),
        (lambda: Coefficients(Fraction(0), Fraction(1), 1.0).side_information_bits, "cannot be undone"),
        (lambda: rf.Midpoint(readout="first"), "Midpoint has no readout 'first'; choose one of 'last', 'mean'"),
        (lambda: finite_step("Euler", "0.5"), "Euler takes a number as step_size, not '0.5'"),
        (lambda: finite_step("Euler", True), "Euler takes a number"),
        (lambda: finite_step("Euler", 0), "positive finite step_size"),
        (lambda: finite_step("Euler", math.inf), "positive finite step_size"),
        (lambda: finite_step("Euler", math.nan), "positive finite step_size, not nan"),
        (lambda: finite_step("Euler", 10**400), r"positive finite step_size, not 10*\.\.\.0*\.$"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("update", [None, "1", 1j, True, torch.tensor(0.5)])
def test_the_coefficient_of_the_update_is_a_number(update):
    with pytest.raises(TypeError, match=r"coefficient of the update is a number, such as 1\.0, not "):
        Coefficients(Fraction(1), Fraction(0), update)


def test_the_coefficient_of_the_update_is_held_as_a_float():
    assert type(Coefficients(Fraction(1), Fraction(0), Fraction(1, 2)).update) is float


def own(**members):
    return type("Own", (rf.Midpoint,), {"name": "own"} | members)()


@pytest.mark.parametrize(
    ("dynamics", "error", "message"),
    [
        (
            own(coefficients=lambda self, layer: (1, 0, 1)),
            TypeError,
            r"Own.coefficients returns \(1, 0, 1\) for layer 0",
        ),
        (own(coefficients=lambda self, layer: None), TypeError, "Own.coefficients returns None for layer 0; return"),
        (
            own(previous_update=lambda self, layer: 0.5),
            ValueError,
            "returns 0.5 for layer 0, which has no layer before",
        ),
    ],
)
def test_dynamics_of_ones_own_are_checked_for_every_layer(dynamics, error, message):
    with pytest.raises(error, match=message):
        dynamics.check(3)


def test_a_layer_steps_once_a_block_and_twice_a_branch():
    assert [len(rf.Midpoint(granularity=granularity).steps(3)) for granularity in ("block", "branch")] == [3, 6]
    blends = [step.previous for step in rf.BlendedMidpoint([1, 2], granularity="branch").steps(2)]
    assert blends == [1, 1, 2, 2]


def test_a_layer_keeps_the_bits_of_its_step():
    assert [rf.BlendedMidpoint(["1/4", 1, "1/9"]).side_information_bits(layer) for layer in range(3)] == [2, 0, 4]


def test_most_dynamics_fit_any_depth_and_evaluate_no_layer_before():
    dynamics = rf.Leapfrog()
    dynamics.check(1)
    dynamics.check(1000)
    assert (dynamics.previous_update(3), dynamics.evaluations_per_step) == (0.0, 1)


def test_options_are_written_in_types_of_json():
    values = rf.BlendedMidpoint([0.5, "1/3"], readout="mean").to_dict()
    assert (values["name"], values["blend"], values["readout"]) == ("blended_midpoint", ["1/2", "1/3"], "mean")


def test_a_factor_of_one_is_not_written():
    assert [times(factor, "x") for factor in (1.0, 0.25, Fraction(3, 4))] == ["x", "0.25 x", "3/4 x"]
