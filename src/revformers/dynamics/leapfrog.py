"""The leapfrog rule of second-order dynamics."""

from dataclasses import dataclass
from fractions import Fraction

from revformers.dynamics.base import ONE, Coefficients, Dynamics, finite_step, times


@dataclass(frozen=True)
class Leapfrog(Dynamics):
    """p[l+1] = 2 p[l] - p[l-1] + h^2 f_l(p[l]) (arXiv 2512.02056, equation 2.6).

    It is stable if the eigenvalues of f's Jacobian are real and negative (section 3 of the paper) and at least -4/h^2.
    With ``start="repeat"`` the initial velocity is 0.

    Attributes:
        step_size: h; the weight of the update is h^2.
        granularity: ``"block"``: one step per block; ``"branch"``: two, attention then MLP.
        start: p[-1], the state before the embedding p[0]: ``"repeat"`` sets it to p[0], ``"zero"`` to 0.
        readout: the input of the head: ``"last"``: p[L], ``"mean"``: (p[L-1] + p[L]) / 2.

    """

    step_size: float = 1.0

    name = "leapfrog"

    def __post_init__(self) -> None:
        super().__post_init__()
        finite_step("Leapfrog", self.step_size)

    def coefficients(self, layer: int) -> Coefficients:
        """Return a = -1, b = 2, c = h^2."""
        return Coefficients(previous=-ONE, current=Fraction(2), update=self._squared_step)

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        return f"p[l+1] = 2 p[l] - p[l-1] + {times(self._squared_step, 'f(p[l])')}"

    @property
    def _squared_step(self) -> float:
        step = float(self.step_size)
        return step * step  # which is infinite where step**2 raises OverflowError; the coefficients refuse it
