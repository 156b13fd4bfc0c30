"""The ways to train that a plan compares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from revformers.activations import Budget, Offload, Rebuild
from revformers.dynamics import BlendedMidpoint, Midpoint, Residual
from revformers.dynamics.base import Granularity
from revformers.errors import counted
from revformers.models.update_predictor import PredictorForm
from revformers.setup import OFFLOAD, ORDINARY_SETUPS, Setup

OVERLAPPED = Setup(Residual(), Offload())
"""The ordinary network in this library's passes, whose copies to and from the host run beside the computation."""


@dataclass(frozen=True)
class Choices:
    """What a plan compares.

    Attributes:
        bits: budgets of side information, each from 0 to 8 bits per element and layer.
        granularity: whether rebuilt networks step by block or by branch.
        predictors: the form of the update predictors of rebuilt networks; None without them.
        mlp_tile: tokens of the batch that an MLP evaluates at a time. None: all, or for setups with which one sequence
            does not fit in that way, a power of two with which it does, the same for all of them.

    """

    bits: Sequence[int] = (0, 2, 4)
    granularity: Granularity = "block"
    predictors: PredictorForm | None = None
    mlp_tile: int | None = None

    @property
    def ordinary(self) -> list[Setup]:
        """The ways to train the ordinary network with transformers alone."""
        return [replace(setup, mlp_tile=self.mlp_tile) for setup in ORDINARY_SETUPS]

    @property
    def setups(self) -> list[Setup]:
        """All ways to train, in the order of the table; "rebuild" appears once for each number of bits."""
        overlapped = replace(OVERLAPPED, mlp_tile=self.mlp_tile)
        return [*self.ordinary, overlapped, *map(self.rebuild, self.bits)]

    def rebuild(self, bits: int) -> Setup:
        """Return the midpoint rule (0 bits) or a blend of 1/2^bits that is rebuilt."""
        return self._reversible(rebuild(bits, self.granularity))

    def budgeted(self, size: int) -> Setup:
        """Return the midpoint rule with a budget of `size` bytes for stored activations."""
        return self._reversible(budgeted(size, self.granularity))

    def _reversible(self, setup: Setup) -> Setup:
        return replace(setup, predictors=self.predictors, mlp_tile=self.mlp_tile)


def rebuild(bits: int, granularity: Granularity = "block") -> Setup:
    """Return the midpoint rule (0 bits) or a blend of 1/2^bits, without update predictors."""
    midpoint = Midpoint(granularity=granularity)
    return Setup(BlendedMidpoint(f"1/{2**bits}", granularity=granularity) if bits else midpoint, Rebuild())


def budgeted(size: int, granularity: Granularity = "block") -> Setup:
    """Return the midpoint rule with a budget of `size` bytes for stored activations."""
    return Setup(Midpoint(granularity=granularity), Budget(size))


def bits_of(setup: Setup) -> int | None:
    """Return the bits of side information per element and step; None for the ordinary network, in any passes."""
    dynamics = setup.dynamics
    return None if dynamics is None or not dynamics.reversible else dynamics.side_information_bits(1)


def name_of(setup: Setup) -> str:
    """Return the name of the activation policy; "serial offload" is that of transformers."""
    serial = replace(setup, mlp_tile=None) == OFFLOAD
    return f"serial {setup.activations.name}" if serial else setup.activations.name


def title_of(setup: Setup) -> str:
    """Return the name of a setup in tables and plots: that of its activation policy, followed by the bits."""
    bits = bits_of(setup)
    return name_of(setup) if bits is None else f"{name_of(setup)}, {counted(bits, 'bit')}"
