"""The midpoint rule as the paper brings a pretrained network to it: two layers are evaluated a step."""

from dataclasses import dataclass
from fractions import Fraction

from revformers.dynamics.base import times
from revformers.dynamics.blended_midpoint import BlendedMidpoint


@dataclass(frozen=True, init=False)
class TwoEvaluationMidpoint(BlendedMidpoint):
    """p[l+1] = a p[l-1] + (1 - a) p[l] + h f_l(p[l]) + a f_{l-1}(p[l]).

    In a pretrained network p[l-1] = p[l] - f_{l-1}(p[l-1]), which arXiv 2512.02056, section 4, approximates by one
    step of the fixed-point iteration, f_{l-1}(p[l]); adding it gives back what the blend takes away from the ordinary
    step. Every layer but the last is evaluated twice a forward pass, so a step costs nearly two: prefer side
    information (a smaller a) or an update predictor where either is enough. The attention of f_{l-1} has no place in
    a key-value cache, so generation runs without one.

    Attributes:
        blend: as in `BlendedMidpoint`; 1 is the paper's form.
        step_size: h, as there.
        random_seed: as there.
        granularity: always ``"block"``.
        start: as there.
        readout: as there.

    """

    name = "two_evaluation_midpoint"
    evaluations_per_step = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity != "block":
            raise ValueError("TwoEvaluationMidpoint steps by block only; leave granularity out.")

    def previous_update(self, layer: int) -> float:
        """Return a; nothing precedes the first layer."""
        return float(self.layer_blend(layer)) if layer else 0.0

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        second = times(self.blend, "f[l-1](p[l])") if isinstance(self.blend, Fraction) else "a f[l-1](p[l])"
        head, separator, origin = super().recurrence.partition(", a ")
        return f"{head} + {second}{separator}{origin}"
