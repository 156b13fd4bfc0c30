"""The explicit midpoint rule."""

from dataclasses import dataclass

from revformers.dynamics.base import ONE, ZERO, Coefficients, Dynamics, finite_step, times


@dataclass(frozen=True)
class Midpoint(Dynamics):
    """p[l+1] = p[l-1] + 2h f_l(p[l]) (arXiv 2512.02056, equation 2.4).

    It is stable if the eigenvalues of f's Jacobian are imaginary (section 3 of the paper), from -i/h to i/h. The even
    and the odd states form two streams of half the depth that interact only inside f. The head reads one of them with
    ``readout="last"``, and both with ``readout="mean"``: the mean of two neighbouring states follows s[l+1] = s[l] + h
    f_l(p[l]), so it has the update of every layer with the weight h.

    Attributes:
        step_size: h. With the default, 1/2, the weight of the update is 1, as in the ordinary network.
        granularity: ``"block"``: one step per block; ``"branch"``: two, attention then MLP.
        start: p[-1], the state before the embedding p[0]: ``"repeat"`` sets it to p[0], ``"zero"`` to 0.
        readout: the input of the head: ``"last"``: p[L], ``"mean"``: (p[L-1] + p[L]) / 2.

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
