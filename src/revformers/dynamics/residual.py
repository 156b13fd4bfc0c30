"""The ordinary residual network, expressed as a dynamics."""

from dataclasses import dataclass

from revformers.dynamics.base import ONE, ZERO, Coefficients, Dynamics


@dataclass(frozen=True, kw_only=True)
class Residual(Dynamics):
    """p[l+1] = p[l] + f_l(p[l]) (arXiv 2512.02056, equation 2.2).

    It has no inverse, so it supports only activation policies that need none.

    Attributes:
        granularity: ``"block"``: one step per block; ``"branch"``: two, attention then MLP.
        start: p[-1], the state before the embedding p[0]: ``"repeat"`` sets it to p[0], ``"zero"`` to 0.
        readout: the input of the head: ``"last"``: p[L], ``"mean"``: (p[L-1] + p[L]) / 2.

    """

    name = "residual"
    reversible = False

    def coefficients(self, layer: int) -> Coefficients:
        """Return a = 0, b = 1, c = 1."""
        return Coefficients(previous=ZERO, current=ONE, update=1.0)

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        return "p[l+1] = p[l] + f(p[l])"
