import dataclasses
from fractions import Fraction

import pytest

import revformers as rf
from revformers.dynamics import Coefficients


def test_the_update_weighs_twice_the_step_size():
    assert rf.Midpoint().coefficients(0) == Coefficients(Fraction(1), Fraction(0), 1.0)
    assert rf.Midpoint(0.25).coefficients(7) == Coefficients(Fraction(1), Fraction(0), 0.5)
    assert rf.Midpoint(0.25).side_information_bits(0) == 0


def test_the_recurrence_in_words():
    assert rf.Midpoint().recurrence == "p[l+1] = p[l-1] + f(p[l])"
    assert rf.Midpoint(0.25).recurrence == "p[l+1] = p[l-1] + 0.5 f(p[l])"


@pytest.mark.parametrize("step_size", [0, -1, float("nan"), "0.5"])
def test_other_step_sizes_are_refused(step_size):
    with pytest.raises(ValueError, match=r"Midpoint takes a .* step_size"):
        rf.Midpoint(step_size)


@pytest.mark.parametrize("step_size", [0.5, 1.0])
def test_the_mean_of_two_states_has_every_update_with_weight_h(step_size):
    dynamics = rf.Midpoint(step_size, readout="mean")
    states, mean = [0.75, 0.75], 0.75
    for layer in range(7):
        a, b, c = dataclasses.astuple(dynamics.coefficients(layer))
        update = (layer + 1) * states[-1] ** 2 / 8
        states.append(float(a) * states[-2] + float(b) * states[-1] + c * update)
        mean += step_size * update
    assert (states[-1] + states[-2]) / 2 == pytest.approx(mean, rel=1e-12)
    assert states[-1] != pytest.approx(mean, rel=1e-2)
