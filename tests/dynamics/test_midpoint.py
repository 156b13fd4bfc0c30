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
