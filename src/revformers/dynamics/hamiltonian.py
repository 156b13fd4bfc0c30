"""Hamiltonian dynamics: attention updates one stream, and the MLP updates the other."""

from dataclasses import dataclass

from revformers.dynamics.base import ONE, ZERO, Coefficients, Dynamics, Granularity


@dataclass(frozen=True, kw_only=True)
class Hamiltonian(Dynamics):
    """q += Attention(p), then p += MLP(q) (arXiv 2512.02056, equations 2.8 and 2.9).

    The pair (q, p) becomes (p, q') and then (q', p'): this is the midpoint rule with 2h = 1, with the two branches of a
    block as alternating steps. It requires a model family whose branches are known.

    Attributes:
        granularity: always ``"branch"``.
        start: p[-1], the state before the embedding p[0]: ``"repeat"`` sets it to p[0], ``"zero"`` to 0.
        readout: the input of the head: ``"last"``: p[L], ``"mean"``: (p[L-1] + p[L]) / 2.

    """

    granularity: Granularity = "branch"

    name = "hamiltonian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity != "branch":
            raise ValueError('Hamiltonian steps by branch; for steps by block use Midpoint(granularity="block").')

    def coefficients(self, layer: int) -> Coefficients:
        """Return a = 1, b = 0, c = 1."""
        return Coefficients(previous=ONE, current=ZERO, update=1.0)

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        return "q += attention(p), p += mlp(q)"
