"""The reference is NumPy's eigenvalues, and powers of the matrix."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from revformers import Hamiltonian, Leapfrog, Midpoint
from revformers.analysis.hamiltonian import HamiltonianPair, product_roots
from revformers.analysis.linear import forward_growth

real = st.floats(-3, 3)
complex_number = st.builds(complex, real, real)
phase = st.floats(0, 6.28).map(lambda angle: np.exp(1j * angle))
signs = st.sampled_from([1.0, -1.0])


def stepped(pair, q, p):
    """One step by its definition."""
    q = pair.a * q + pair.alpha * p
    return q, pair.b * p + pair.beta * q


@given(complex_number, complex_number, complex_number, complex_number)
@settings(deadline=None, max_examples=50)
def test_matrix_determinant_trace_and_roots(a, b, alpha, beta):
    pair = HamiltonianPair(a, b, alpha, beta)
    assert np.allclose(pair.matrix @ [0.3, -0.7j], stepped(pair, 0.3, -0.7j), atol=1e-12)
    assert abs(pair.determinant - np.linalg.det(pair.matrix)) < 1e-8
    assert abs(pair.trace - np.trace(pair.matrix)) < 1e-8
    assume(abs(np.subtract(*pair.roots)) > 0.01)
    reference = np.linalg.eigvals(pair.matrix)
    reference = reference[np.argsort(np.abs(reference - pair.roots[0]))]
    assert np.allclose(pair.roots, reference, rtol=0, atol=1e-8)


@given(phase, phase, complex_number, complex_number)
@settings(deadline=None, max_examples=50)
def test_stable_iff_both_roots_are_on_the_unit_circle(a, b, alpha, beta):
    pair = HamiltonianPair(a, b, alpha, beta)
    largest = max(abs(np.linalg.eigvals(pair.matrix)))
    assume(pair.is_stable or largest > 1.001)
    assert pair.is_stable == (largest < 1.0001)
    assert pair.meets_paper_criterion or not pair.is_stable


@given(real, real)
@settings(deadline=None, max_examples=50)
def test_with_real_branches_the_criterion_of_the_paper_is_complete(alpha, beta):
    pair = HamiltonianPair(1, 1, alpha, beta)
    assert pair.is_stable == pair.meets_paper_criterion == (-4 - 1e-9 <= alpha * beta <= 1e-9)


@pytest.mark.parametrize("pair", [HamiltonianPair(1, 1, 1, -2 + 1j), HamiltonianPair(1, -1, 1, 1)])
def test_the_criterion_of_the_paper_alone_does_not_suffice(pair):
    assert pair.meets_paper_criterion
    assert not pair.is_stable
    assert max(abs(np.linalg.eigvals(pair.matrix))) == pytest.approx((1 + np.sqrt(5)) / 2)


def test_a_determinant_off_the_circle_is_never_stable():
    assert not HamiltonianPair(0.5, 1, 0.1, -0.1).is_stable
    assert not HamiltonianPair(1.1, 1 / 1.2, 0.1, -0.1).is_stable


@pytest.mark.parametrize("dynamics", [Hamiltonian(), Midpoint(0.3, granularity="branch")])
def test_matrices_in_place_of_numbers(dynamics):
    """The eigenvalues of both steps together are those of B A, two for each."""
    generator = np.random.default_rng(0)
    A, B = generator.normal(size=(2, 5, 5))
    step = dynamics.coefficients(0)
    eye, zero = np.eye(5), np.zeros((5, 5))
    first, second = (np.block([[zero, eye], [float(step.previous) * eye, step.update * M]]) for M in (A, B))
    reference = np.linalg.eigvals(second @ first)
    found = product_roots(step, np.linalg.eigvals(B @ A)).ravel()
    assert all(min(abs(reference - root)) < 1e-8 for root in found)
    assert all(min(abs(found - root)) < 1e-8 for root in reference)


def test_other_steps_by_branch_do_not_follow_from_the_product():
    with pytest.raises(ValueError, match="b must be 0"):
        product_roots(Leapfrog(granularity="branch").coefficients(0), [1.0])


def test_the_product_takes_the_place_of_leapfrogs_eigenvalue():
    products = [-5, -4, -2.5, 0, 0.5, -1 + 1j, 2j]
    expected = forward_growth(Leapfrog().coefficients(0), products)
    assert np.abs(product_roots(Hamiltonian().coefficients(0), products)[:, 0]) == pytest.approx(expected, abs=1e-12)
