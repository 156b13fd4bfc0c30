from fractions import Fraction

import pytest

import revformers as rf
from revformers.dynamics import Coefficients


def test_the_update_weighs_the_square_of_the_step_size():
    assert rf.Leapfrog(0.5).coefficients(3) == Coefficients(Fraction(-1), Fraction(2), 0.25)
    assert rf.Leapfrog().side_information_bits(0) == 0


def test_the_recurrence_in_words():
    assert rf.Leapfrog(0.5).recurrence == "p[l+1] = 2 p[l] - p[l-1] + 0.25 f(p[l])"


@pytest.mark.parametrize("step_size", [0, float("inf"), True])
def test_other_step_sizes_are_refused(step_size):
    with pytest.raises(ValueError, match=r"Leapfrog takes a .* step_size"):
        rf.Leapfrog(step_size)


def test_a_step_size_whose_square_is_no_float_is_refused():
    with pytest.raises(ValueError, match="update is inf; choose a finite number"):
        rf.Leapfrog(1e200).coefficients(0)
