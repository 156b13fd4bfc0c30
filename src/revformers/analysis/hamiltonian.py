"""The linear Hamiltonian pair q' = a q + alpha p, p' = b p + beta q': its matrix, its roots, when it is stable.

This is the pair of arXiv 2512.02056, section 3; with a = b = 1 it is the linear form of `revformers.Hamiltonian`, alpha
and beta being the two branches. Its matrix on (q, p) is

    M = [[a, alpha], [a beta, b + alpha beta]],      determinant a b,      trace a + b + alpha beta.

The paper's criterion for stability in both directions (equations 24 and 25 of the HTML version) is |a b| = 1 and
|a + b + alpha beta| <= 2. Both are necessary, because they are the product and the sum of two roots on the unit circle.
They suffice if trace / sqrt(a b) is real: so for a b = 1 and a real trace, which is the case of real alpha beta and a =
b = 1, where the criterion reads -4 <= alpha beta <= 0. In general they do not: a = 1, b = 1, alpha beta = -2 + i has
|trace| = 1 and a root of modulus 1.618. `is_stable` adds the missing condition (our derivation; see also `linear`).

With matrices A and B for alpha and beta (the Jacobians of attention and MLP) and a = b = 1, an eigenvector p of B A
with the eigenvalue mu obeys r^2 - (2 + mu) r + 1 = 0. So the pair is stable iff all mu are real and between -4 and 0
(at both ends a perturbation grows linearly), which is leapfrog's condition with the product of the branches in the
place of lambda.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from revformers.analysis.linear import Complex, roots_of
from revformers.dynamics.base import Coefficients

TOLERANCE = 1e-9
"""Rounding up to which |a b| counts as 1, and a number as real or as within its bounds."""


@dataclass(frozen=True)
class HamiltonianPair:
    """q' = a q + alpha p, then p' = b p + beta q'; all four are real or complex numbers."""

    a: complex
    b: complex
    alpha: complex
    beta: complex

    @property
    def matrix(self) -> Complex:
        """M of (q', p') = M (q, p), complex128[2, 2]."""
        row = [self.a * self.beta, self.b + self.alpha * self.beta]
        return np.array([[self.a, self.alpha], row], dtype=np.complex128)

    @property
    def determinant(self) -> complex:
        """The determinant of M, a b: the product of the roots."""
        return self.a * self.b

    @property
    def trace(self) -> complex:
        """The trace of M, a + b + alpha beta: the sum of the roots."""
        return self.a + self.b + self.alpha * self.beta

    @property
    def roots(self) -> Complex:
        """The eigenvalues of M, the larger one first, complex128[2]."""
        return roots_of(self.trace, self.determinant)

    @property
    def meets_paper_criterion(self) -> bool:
        """Whether |a b| = 1 and |a + b + alpha beta| <= 2 (equations 24 and 25): necessary, and often sufficient."""
        return abs(abs(self.determinant) - 1) <= TOLERANCE and abs(self.trace) <= 2 + TOLERANCE

    @property
    def is_stable(self) -> bool:
        """Whether both roots have modulus 1. Equal roots let a perturbation grow linearly, except if M is diagonal."""
        if not self.meets_paper_criterion:
            return False
        return bool(abs((self.trace / np.emath.sqrt(self.determinant)).imag) <= TOLERANCE)


def product_roots(coefficients: Coefficients, eigenvalues: ArrayLike) -> Complex:
    """Return the roots of two steps by branch, for eigenvalues mu of J_mlp J_attention.

    Both steps have the coefficients a, b = 0 and c, so that q' = a q + c alpha p and p' = a p + c beta q', and r^2 -
    (2 a + c^2 mu) r + a^2 = 0. With a = c = 1 the stable mu are `linear.stable_segment` of leapfrog with h = 1, from -4
    to 0.

    Returns:
        complex128[..., 2], the larger root first.

    Raises:
        ValueError: if b is not 0; then the roots do not follow from the product alone.

    """
    if coefficients.current:
        raise ValueError(
            f"Steps by branch with b = {coefficients.current} have roots that do not follow from the eigenvalues of "
            f"J_mlp J_attention; b must be 0."
        )
    a = float(coefficients.previous)
    return roots_of(2 * a + coefficients.update**2 * np.asarray(eigenvalues, np.complex128), a * a)
