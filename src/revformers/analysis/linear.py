"""The linear test equation p[l+1] = a p[l-1] + b p[l] + c lambda p[l]: its roots, its growth, its stable region.

A field whose Jacobian has the eigenvalue lambda acts on the eigenvector as multiplication by lambda, so that a small
perturbation along it follows this equation (arXiv 2512.02056, section 3, with h lambda for our c lambda). Its solutions
are combinations of r1^l and r2^l, where r1 and r2 are the roots of

    r^2 = t r + a,        t = b + c lambda.

What follows from r1 + r2 = t and r1 r2 = -a (our derivation; the tests compare it with eigenvalues by NumPy):

* Forwards a perturbation grows by max |r| a step, backwards by 1 / min |r|. Their quotient is |a|: growth forwards =
  |a| x growth backwards. So |a| < 1 moves growth to the inverse, and at |a| = 1 both directions grow alike.
* Nothing grows exponentially in either direction iff |r1| = |r2| = 1, which requires |a| = |r1 r2| = 1 and |t| = |r1 +
  r2| <= 2.
* These two do not suffice. With r1 = w e^(i x) and r2 = w e^(-i x), |w| = 1, we get a = -w^2 and t = 2 w cos x. So t
  lies on the segment from -2 w to 2 w, w = sqrt(-a): t is imaginary for a = 1, and real for a = -1. Off the segment
  one root is outside of the unit circle however small |t| is.
* At the two ends of the segment both roots are equal. There a perturbation grows linearly with l, in both directions.
* A constant state passes the step unchanged iff a + b = 1 (for lambda = 0). Of all steps with real coefficients, |a| =
  1 leaves midpoint (a = 1, b = 0) and leapfrog (a = -1, b = 2).

"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from revformers.dynamics.base import Coefficients

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]

Regime = Literal["bounded", "linear", "exponential"]

ON_SEGMENT = 1e-9
"""Distance from the segment of stable t up to which a number counts as on it, relative to its length."""


def traces(coefficients: Coefficients, eigenvalues: ArrayLike) -> Complex:
    """Return t = b + c lambda, complex128 of the shape of `eigenvalues`."""
    return float(coefficients.current) + coefficients.update * np.asarray(eigenvalues, dtype=np.complex128)


def roots(coefficients: Coefficients, eigenvalues: ArrayLike) -> Complex:
    """Return the two roots of r^2 = t r + a for every eigenvalue, the larger one first.

    Args:
        coefficients: a, b and c of the step.
        eigenvalues: lambda, any shape, real or complex.

    Returns:
        complex128[..., 2].

    """
    return roots_of(traces(coefficients, eigenvalues), -float(coefficients.previous))


def roots_of(trace: ArrayLike, determinant: ArrayLike) -> Complex:
    """Return the two roots of r^2 - trace r + determinant = 0, the larger one first, complex128[..., 2].

    The second root is determinant / first: a difference of two nearly equal numbers would lose it.
    """
    t, d = np.broadcast_arrays(np.asarray(trace, np.complex128), np.asarray(determinant, np.complex128))
    spread = np.sqrt(t * t - 4 * d)
    larger = (t + np.where((t.conj() * spread).real >= 0, spread, -spread)) / 2
    smaller = np.divide(d, larger, out=np.zeros_like(larger), where=larger != 0)
    return np.stack([larger, smaller], axis=-1)


def forward_growth(coefficients: Coefficients, eigenvalues: ArrayLike) -> Real:
    """Return the growth of a perturbation per step forwards, max |r|, float64 of the shape of `eigenvalues`."""
    return np.abs(roots(coefficients, eigenvalues)[..., 0])


def inverse_growth(coefficients: Coefficients, eigenvalues: ArrayLike) -> Real:
    """Return the growth of a perturbation per step of the inverse, 1 / min |r|; infinite where there is no inverse."""
    smaller = np.abs(roots(coefficients, eigenvalues)[..., 1])
    return np.divide(1.0, smaller, out=np.full_like(smaller, np.inf), where=smaller != 0)


def stable_segment(coefficients: Coefficients) -> tuple[complex, complex] | None:
    """Return the ends of the segment of lambda on which nothing grows exponentially, forwards or backwards.

    Midpoint: from -i/h to i/h. Leapfrog: from -4/h^2 to 0. At the ends themselves growth is linear; see `regime`.

    Returns:
        The ends, or None if there are no such lambda: for |a| other than 1, or an update that does not count (c = 0).

    """
    if abs(coefficients.previous) != 1 or not coefficients.update:
        return None
    w = complex(np.emath.sqrt(-float(coefficients.previous)))
    first, last = ((sign * 2 * w - float(coefficients.current)) / coefficients.update for sign in (-1, 1))
    return first, last


def regime(coefficients: Coefficients, eigenvalue: complex) -> Regime:
    """Return how a perturbation grows in the worse direction: not at all, linearly with depth, or exponentially.

    Linear growth belongs to the double roots at the ends of the stable segment, such as leapfrog's at lambda = 0.
    """
    if abs(coefficients.previous) != 1:
        return "exponential"
    # t / w is real and within [-2, 2] on the segment
    place = complex(traces(coefficients, eigenvalue)) / complex(np.emath.sqrt(-float(coefficients.previous)))
    if abs(place.imag) > 4 * ON_SEGMENT or abs(place.real) > 2 + 4 * ON_SEGMENT:
        return "exponential"
    return "linear" if abs(abs(place.real) - 2) <= 4 * ON_SEGMENT else "bounded"


@dataclass(frozen=True)
class Region:
    """The growth per step over a grid of the complex plane of lambda.

    Attributes:
        real: the real parts of the grid, float64[columns].
        imaginary: the imaginary parts, float64[rows].
        forward: growth forwards, float64[rows, columns]; the step is stable forwards where it is at most 1.
        inverse: growth of the inverse, float64[rows, columns].

    """

    real: Real
    imaginary: Real
    forward: Real
    inverse: Real


def region(coefficients: Coefficients, real: ArrayLike, imaginary: ArrayLike) -> Region:
    """Return the growth over the grid of all real + i imaginary, which are one-dimensional."""
    x, y = np.asarray(real, np.float64), np.asarray(imaginary, np.float64)
    grid: Any = x[None, :] + 1j * y[:, None]
    return Region(x, y, forward_growth(coefficients, grid), inverse_growth(coefficients, grid))
