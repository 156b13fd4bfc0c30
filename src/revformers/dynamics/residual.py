"""The ordinary network, as one more setting of the recurrence."""

from dataclasses import dataclass

from revformers.dynamics.base import ONE, ZERO, Coefficients, Dynamics


@dataclass(frozen=True, kw_only=True)
class Residual(Dynamics):
    """p[l+1] = p[l] + f_l(p[l]) (arXiv 2512.02056, equation 2.2): no inverse, so it stores or checkpoints.

    Attributes:
        granularity: ``"block"`` steps once a block; ``"branch"`` twice, attention then MLP.
        start: the state before the embedding: ``"repeat"`` takes the embedding again, ``"zero"`` takes 0.
        readout: what the head reads: ``"last"`` takes p[L], ``"mean"`` takes (p[L-1] + p[L]) / 2.

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
