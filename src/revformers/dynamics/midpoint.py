"""The explicit midpoint rule."""

from dataclasses import dataclass

from revformers.dynamics.base import ONE, ZERO, Coefficients, Dynamics, finite_step, times


@dataclass(frozen=True)
class Midpoint(Dynamics):
    """p[l+1] = p[l-1] + 2h f_l(p[l]) (arXiv 2512.02056, equation 2.4).

    Stable where the eigenvalues of f's Jacobian are imaginary (section 3 of the paper). With ``readout="last"`` the
    even and the odd layers form two half-deep streams that meet only inside f; ``readout="mean"`` lets the head read
    both.

    Attributes:
        step_size: h. The default 1/2 makes the update weigh 1, as in the ordinary network.
        granularity: ``"block"`` steps once a block; ``"branch"`` twice, attention then MLP.
        start: the state before the embedding: ``"repeat"`` takes the embedding again, ``"zero"`` takes 0.
        readout: what the head reads: ``"last"`` takes p[L], ``"mean"`` takes (p[L-1] + p[L]) / 2.

    """

    step_size: float = 0.5

    name = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        finite_step("Midpoint", self.step_size)

    def coefficients(self, layer: int) -> Coefficients:
        """Return a = 1, b = 0, c = 2h."""
        return Coefficients(previous=ONE, current=ZERO, update=2.0 * self.step_size)

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        return f"p[l+1] = p[l-1] + {times(2.0 * self.step_size, 'f(p[l])')}"
