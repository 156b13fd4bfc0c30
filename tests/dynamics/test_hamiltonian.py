from fractions import Fraction

import pytest

import revformers as rf
from revformers.dynamics import Coefficients


def test_it_steps_by_branch_as_the_midpoint_rule_does():
    dynamics = rf.Hamiltonian()
    assert dynamics.granularity == "branch"
    assert dynamics.steps(1) == 2 * [Coefficients(Fraction(1), Fraction(0), 1.0)]
    assert dynamics.steps(4) == rf.Midpoint(granularity="branch").steps(4)
    assert dynamics.recurrence == "q += attention(p), p += mlp(q)"
    with pytest.raises(ValueError, match="steps by branch"):
        rf.Hamiltonian(granularity="block")
