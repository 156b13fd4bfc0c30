"""The ways to train that a plan compares."""

from collections.abc import Sequence

from revformers.activations import Budget, Rebuild
from revformers.dynamics import BlendedMidpoint, Midpoint
from revformers.errors import counted
from revformers.setup import ORDINARY_SETUPS, Setup


def rebuild(bits: int) -> Setup:
    """Return the midpoint rule (0 bits) or a blend of 1/2^bits, without update predictors."""
    return Setup(BlendedMidpoint(f"1/{2**bits}") if bits else Midpoint(), Rebuild())


def budgeted(size: int) -> Setup:
    """Return the midpoint rule with a budget of `size` bytes for stored activations."""
    return Setup(Midpoint(), Budget(size))


def setups(bits: Sequence[int]) -> list[Setup]:
    """Return the ways to compare, in the order of the table; "rebuild" appears once for each number of bits."""
    return [*ORDINARY_SETUPS, *map(rebuild, bits)]


def bits_of(setup: Setup) -> int | None:
    """Return the bits of side information per element and layer, or None for the ordinary network."""
    return None if setup.dynamics is None else setup.dynamics.side_information_bits(1)


def title_of(setup: Setup) -> str:
    """Return the name of a setup in tables and plots: that of its activation policy, followed by the bits."""
    bits = bits_of(setup)
    return setup.activations.name if bits is None else f"{setup.activations.name}, {counted(bits, 'bit')}"
