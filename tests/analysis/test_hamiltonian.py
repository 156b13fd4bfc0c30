"""The reference is NumPy's eigenvalues, and powers of the matrix."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from revformers import Leapfrog
from revformers.analysis.hamiltonian import HamiltonianPair, invariant, product_roots
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


def test_matrices_in_place_of_numbers():
    """The eigenvalues of the whole pair are those of B A, two for each."""
    generator = np.random.default_rng(0)
    A, B = generator.normal(size=(2, 5, 5))
    eye = np.eye(5)
    reference = np.linalg.eigvals(np.block([[eye, A], [B, eye + B @ A]]))
    found = product_roots(np.linalg.eigvals(B @ A)).ravel()
    assert all(min(abs(reference - root)) < 1e-8 for root in found)
    assert all(min(abs(found - root)) < 1e-8 for root in reference)


def test_the_product_takes_the_place_of_leapfrogs_eigenvalue():
    products = [-5, -4, -2.5, 0, 0.5, -1 + 1j, 2j]
    expected = forward_growth(Leapfrog().coefficients(0), products)
    assert np.abs(product_roots(products)[:, 0]) == pytest.approx(expected, abs=1e-12)


def test_the_invariant_is_conserved_by_symmetric_branches_alone():
    generator = np.random.default_rng(1)
    drift = {}
    for symmetric in (True, False):
        A, B = 0.2 * generator.normal(size=(2, 6, 6))
        A, B = (A + A.T, B + B.T) if symmetric else (A, B)
        states = [generator.normal(size=(2, 6))]
        for _ in range(10):
            q = states[-1][0] + A @ states[-1][1]
            states.append(np.stack([q, states[-1][1] + B @ q]))
        values = [invariant(*now, *after) for now, after in itertools.pairwise(states)]
        drift[symmetric] = max(abs(value - values[0]) for value in values) / abs(values[0])
    assert drift[True] < 1e-8
    assert drift[False] > 1e-2
