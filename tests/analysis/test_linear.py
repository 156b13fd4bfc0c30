"""The reference is the eigenvalues of the companion matrix, by NumPy, and the recurrence itself, step by step."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from revformers import BlendedMidpoint, Leapfrog, Midpoint, Residual
from revformers.analysis.linear import forward_growth, inverse_growth, regime, region, roots, stable_segment
from revformers.dynamics import Coefficients

MIDPOINT, LEAPFROG = Midpoint().coefficients(0), Leapfrog().coefficients(0)
RESIDUAL, BLENDED = Residual().coefficients(0), BlendedMidpoint(0.5).coefficients(0)

small = st.fractions(-3, 3, max_denominator=16)
numbers = st.floats(-4, 4)
coefficients = st.builds(Coefficients, small.filter(bool), small, numbers.filter(lambda c: abs(c) > 0.1))
eigenvalues = st.builds(complex, numbers, numbers)


def companion(step, eigenvalue):
    """The matrix that takes (p[l], p[l-1]) to (p[l+1], p[l])."""
    return np.array([[float(step.current) + step.update * eigenvalue, float(step.previous)], [1, 0]])


@given(coefficients, eigenvalues)
@settings(deadline=None, max_examples=50)
def test_roots_are_the_eigenvalues_of_the_companion_matrix(step, eigenvalue):
    found = roots(step, eigenvalue)
    assume(abs(found[0] - found[1]) > 0.01)  # near a double root no method in float64 has eight digits
    reference = np.linalg.eigvals(companion(step, eigenvalue))
    reference = reference[np.argsort(np.abs(reference - found[0]))]
    assert np.allclose(found, reference, rtol=0, atol=1e-8)
    assert abs(found[0]) >= abs(found[1]) - 1e-12


@given(coefficients, eigenvalues)
@settings(deadline=None, max_examples=50)
def test_the_growth_of_the_inverse_is_that_of_the_inverted_matrix(step, eigenvalue):
    assume(abs(np.subtract(*roots(step, eigenvalue))) > 0.01)
    matrix = companion(step, eigenvalue)
    forward, backward = (max(abs(np.linalg.eigvals(one))) for one in (matrix, np.linalg.inv(matrix)))
    assert forward_growth(step, eigenvalue) == pytest.approx(forward, rel=1e-8)
    assert inverse_growth(step, eigenvalue) == pytest.approx(backward, rel=1e-8)
    assert forward == pytest.approx(abs(float(step.previous)) * backward, rel=1e-8)


@given(coefficients, eigenvalues)
@settings(deadline=None, max_examples=50)
def test_the_regime_is_that_of_a_high_power(step, eigenvalue):
    growth = max(forward_growth(step, eigenvalue), inverse_growth(step, eigenvalue))
    assume(growth > 1.02 or regime(step, eigenvalue) == "bounded")
    matrix = companion(step, eigenvalue)
    with np.errstate(all="ignore"):
        norms = [np.abs(np.linalg.matrix_power(one, 2048)).max() for one in (matrix, np.linalg.inv(matrix))]
    grew = not all(norm < 1e5 for norm in norms)  # NaN after an overflow counts
    assert grew == (regime(step, eigenvalue) == "exponential")


@given(
    st.sampled_from([MIDPOINT, LEAPFROG, Midpoint(0.2).coefficients(0), Leapfrog(0.5).coefficients(0)]), st.floats(0, 1)
)
def test_nothing_grows_on_the_stable_segment_and_everything_beside_it(step, place):
    first, last = stable_segment(step)
    on = first + place * (last - first)
    tolerance = 1e-7  # the square root of the precision, as roots at the ends are double
    assert abs(forward_growth(step, on) - 1) < tolerance
    assert abs(inverse_growth(step, on) - 1) < tolerance
    beside = on + 0.01j * (last - first)
    assert forward_growth(step, beside) > 1.0001
    assert inverse_growth(step, beside) > 1.0001
    assert regime(step, beside) == "exponential"


def test_the_segments_of_the_library():
    assert stable_segment(MIDPOINT) == pytest.approx((-2j, 2j))
    assert stable_segment(Midpoint(0.25).coefficients(0)) == pytest.approx((-4j, 4j))
    assert stable_segment(LEAPFROG) == pytest.approx((-4, 0))
    assert stable_segment(Leapfrog(0.5).coefficients(0)) == pytest.approx((-16, 0))
    assert stable_segment(BLENDED) is None
    assert stable_segment(RESIDUAL) is None
    assert stable_segment(Coefficients(Fraction(1), Fraction(0), 0.0)) is None


def test_a_small_trace_does_not_suffice():
    """The counterexample to |a| = 1 and |b + c lambda| <= 2 as a criterion of its own."""
    assert abs(float(MIDPOINT.current) + MIDPOINT.update * 1.0) <= 2
    assert forward_growth(MIDPOINT, 1.0) == pytest.approx((1 + math.sqrt(5)) / 2, abs=1e-12)
    assert regime(MIDPOINT, 1.0) == "exponential"


@pytest.mark.parametrize(("step", "end"), [(MIDPOINT, 2j), (MIDPOINT, -2j), (LEAPFROG, 0), (LEAPFROG, -4)])
def test_the_ends_of_the_segment_grow_linearly(step, end):
    assert regime(step, end) == "linear"
    near, far = (np.abs(np.linalg.matrix_power(companion(step, end), length)).max() for length in (1000, 2000))
    assert far / near == pytest.approx(2, rel=0.01)


def test_blends_move_growth_to_the_inverse():
    for blend in (Fraction(1, 2), Fraction(1, 16), Fraction(-1, 4)):
        step = BlendedMidpoint(blend).coefficients(0)
        assert forward_growth(step, 0) == pytest.approx(1)
        assert inverse_growth(step, 0) == pytest.approx(1 / abs(float(blend)))
        assert regime(step, 0) == "exponential"


def test_the_ordinary_network_has_no_inverse():
    assert forward_growth(RESIDUAL, [0, -0.5, 1j]) == pytest.approx([1, 0.5, math.sqrt(2)])
    assert np.all(np.isinf(inverse_growth(RESIDUAL, [0, -0.5, 1j])))


def test_constants_pass_only_midpoint_and_leapfrog_of_those_with_unit_a():
    """r = 1 is a root at lambda = 0 iff a + b = 1."""
    passing = [
        (a, b)
        for a in (Fraction(1), Fraction(-1))
        for b in (Fraction(number, 4) for number in range(-16, 17))
        if np.any(np.abs(roots(Coefficients(a, b, 1.0), 0) - 1) < 1e-9)
    ]
    assert passing == [(1, 0), (-1, 2)]


def test_a_region_is_the_growth_over_its_grid():
    found = region(LEAPFROG, np.linspace(-5, 1, 7), np.linspace(-1, 1, 3))
    assert found.forward.shape == found.inverse.shape == (3, 7)
    assert found.forward[2, 4] == forward_growth(LEAPFROG, -1 + 1j)
    assert found.inverse[0, 0] == inverse_growth(LEAPFROG, -5 - 1j)
    assert np.all(found.forward[1, 1:6] < 1 + 1e-7)
    assert found.forward[1, 0] > 1.1
    assert found.forward[1, 6] > 1.1
