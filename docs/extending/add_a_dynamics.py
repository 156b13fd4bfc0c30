"""A dynamics of your own: leapfrog with friction."""

from dataclasses import dataclass
from fractions import Fraction

import revformers as rf
from revformers.dynamics import Coefficients, register


@register
@dataclass(frozen=True)
class DampedLeapfrog(rf.Dynamics):
    """p[l+1] = (2 - r) p[l] - (1 - r) p[l-1] + f(p[l]).

    Attributes:
        friction: r, the share of the last update that is lost, an exact fraction between 0 and 1.

    """

    friction: Fraction = Fraction(1, 4)

    name = "damped_leapfrog"

    def __post_init__(self) -> None:
        """Read the friction from JSON, which has no fractions, and refuse what is out of range."""
        super().__post_init__()
        object.__setattr__(self, "friction", Fraction(self.friction))
        if not 0 <= self.friction < 1:
            raise ValueError(f"DampedLeapfrog takes a friction from 0 to below 1, not {self.friction}.")

    def coefficients(self, layer: int) -> Coefficients:
        """Return a = r - 1, b = 2 - r, c = 1."""
        return Coefficients(previous=self.friction - 1, current=2 - self.friction, update=1.0)

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        return f"p[l+1] = {2 - self.friction} p[l] - {1 - self.friction} p[l-1] + f(p[l])"
