"""The leapfrog rule of second-order dynamics."""

from dataclasses import dataclass
from fractions import Fraction

from revformers.dynamics.base import ONE, Coefficients, Dynamics, finite_step, times


@dataclass(frozen=True)
class Leapfrog(Dynamics):
    """p[l+1] = 2 p[l] - p[l-1] + h^2 f_l(p[l]) (arXiv 2512.02056, equation 2.6).

    Stable where the eigenvalues of f's Jacobian are real and negative (section 3 of the paper). With
    ``start="repeat"`` the stream starts at rest.

    Attributes:
        step_size: h; the update weighs h^2.
        granularity: ``"block"`` steps once a block; ``"branch"`` twice, attention then MLP.
        start: the state before the embedding: ``"repeat"`` takes the embedding again, ``"zero"`` takes 0.
        readout: what the head reads: ``"last"`` takes p[L], ``"mean"`` takes (p[L-1] + p[L]) / 2.

    """

    step_size: float = 1.0

    name = "leapfrog"

    def __post_init__(self) -> None:
        super().__post_init__()
        finite_step("Leapfrog", self.step_size)

    def coefficients(self, layer: int) -> Coefficients:
        """Return a = -1, b = 2, c = h^2."""
        return Coefficients(previous=-ONE, current=Fraction(2), update=float(self.step_size) ** 2)

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        return f"p[l+1] = 2 p[l] - p[l-1] + {times(float(self.step_size) ** 2, 'f(p[l])')}"
