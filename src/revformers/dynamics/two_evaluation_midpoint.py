"""The paper's midpoint rule for pretrained networks, which evaluates two layers per step."""

from dataclasses import dataclass
from fractions import Fraction

from revformers.dynamics.base import times
from revformers.dynamics.blended_midpoint import BlendedMidpoint


@dataclass(frozen=True, init=False)
class TwoEvaluationMidpoint(BlendedMidpoint):
    """p[l+1] = a p[l-1] + (1 - a) p[l] + h f_l(p[l]) + a f_{l-1}(p[l]).

    In a pretrained network p[l-1] = p[l] - f_{l-1}(p[l-1]), which arXiv 2512.02056, section 4, approximates by one
    step of the fixed-point iteration, f_{l-1}(p[l]). Adding a f_{l-1}(p[l]) compensates for what the blend subtracts
    from the ordinary step. Every layer but the last is evaluated twice in a forward pass, which nearly doubles its
    time: prefer side information (a smaller a) or an update predictor where either is enough. Key-value caches do not
    support the second evaluation of attention, so generation runs without a cache.

    Attributes:
        blend: as in `BlendedMidpoint`; 1 is the paper's form.
        step_size: h, as in `BlendedMidpoint`.
        random_seed: as in `BlendedMidpoint`.
        granularity: always ``"block"``.
        start: as in `BlendedMidpoint`.
        readout: as in `BlendedMidpoint`.

    """

    name = "two_evaluation_midpoint"
    evaluations_per_step = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity != "block":
            raise ValueError("TwoEvaluationMidpoint steps by block only; leave granularity out.")

    def previous_update(self, layer: int) -> float:
        """Return a; 0 for the first layer."""
        return float(self.layer_blend(layer)) if layer else 0.0

    @property
    def recurrence(self) -> str:
        """The recurrence in one line."""
        second = times(self.blend, "f[l-1](p[l])") if isinstance(self.blend, Fraction) else "a f[l-1](p[l])"
        head, separator, origin = super().recurrence.partition(", a ")
        return f"{head} + {second}{separator}{origin}"
