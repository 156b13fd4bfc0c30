from fractions import Fraction

import pytest

import revformers as rf
from revformers.dynamics import Coefficients


def test_it_is_the_ordinary_network_and_has_no_inverse():
    assert rf.Residual().coefficients(5) == Coefficients(Fraction(0), Fraction(1), 1.0)
    assert rf.Residual().recurrence == "p[l+1] = p[l] + f(p[l])"
    assert not rf.Residual().reversible
    with pytest.raises(ValueError, match="cannot be undone"):
        rf.Residual().side_information_bits(0)
