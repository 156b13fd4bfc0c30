"""The ordinary residual network, expressed as a dynamics."""

from dataclasses import dataclass

from revformers.dynamics.base import ONE, ZERO, Coefficients, Dynamics, finite_step, times


@dataclass(frozen=True, kw_only=True)
class Residual(Dynamics):
    """p[l+1] = p[l] + h f_l(p[l]) (arXiv 2512.02056, equation 2.2, where h is 1).

    It has no inverse, so it supports only activation policies that need none.

    Attributes:
        step_size: h. With the default, 1, this is the ordinary network.
        granularity: ``"block"``: one step per block; ``"branch"``: two, attention then MLP.
        start: p[-1], the state before the embedding p[0]: ``"repeat"`` sets it to p[0], ``"zero"`` to 0.
        readout: the input of the head: ``"last"``: p[L], ``"mean"``: (p[L-1] + p[L]) / 2.

    """

    step_size: float = 1.0

    name = "residual"
    reversible = False

    def __post_init__(self) -> None:
        super().__post_init__()
        finite_step("Residual", self.step_size)

    @property
    def ordinary(self) -> bool:
        """Whether this is the network that other software computes from the same weights."""
        return self.step_size == 1 and self.readout == "last"

    def coefficients(self, layer: int) -> Coefficients:
        """Return a = 0, b = 1, c = h."""
        return Coefficients(previous=ZERO, current=ONE, update=float(self.step_size))

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        return f"p[l+1] = p[l] + {times(float(self.step_size), 'f(p[l])')}"
