"""Chooses one way to train from the rows of a plan."""

import math
from collections.abc import Sequence

from revformers.activations import Rebuild
from revformers.planning.cost import SetupCost
from revformers.planning.setups import OVERLAPPED, bits_of
from revformers.setup import CHECKPOINT, OFFLOAD, STORE

WORTH = 1.1
"""Factor by which a way must be worth more than one that stands before it in `_PLACES`, to be chosen instead."""

NEAR_BITS = 2
"""Bits of side information from which a converted model computes nearly what the pretrained one did; see
docs/guides/convert.md."""

_PLACES = {CHECKPOINT: 0, OVERLAPPED: 1, OFFLOAD: 2}
"""The order of ways that are worth about as much; rebuilding comes last."""


def choose(rows: Sequence[SetupCost], *, host_is_known: bool) -> SetupCost | None:
    """Return the row to recommend, or None if none fits.

    Storing is fastest, so it is chosen if it fits. Otherwise a row is worth the geometric mean of the sequences and the
    tokens that fit, divided by the time of a step. Checkpointing is chosen unless another row is worth a tenth more,
    as it needs nothing else; then offloading, which trains the ordinary network as well; then rebuilding, with the
    fewest bits, which take the least memory and time. Offloading is chosen only if the memory of the host is known or
    nothing else fits. Budgets, which use the memory that others leave, are not chosen.

    Args:
        rows: the rows of the plan that may be chosen; see `candidates`.
        host_is_known: whether the memory of the host is known.

    """
    best = fewest_bits(rows)
    fitting = [row for row in rows if row.largest_batch and (bits_of(row.setup) is None or row is best)]
    stored = [row for row in fitting if row.way == STORE]
    on_device = [row for row in fitting if not row.setup.activations.on_host]
    choices = stored or (fitting if host_is_known else on_device) or fitting
    most = max(map(_worth, choices), default=0.0)
    return min((row for row in choices if WORTH * _worth(row) >= most), key=_place, default=None)


def candidates(rows: Sequence[SetupCost], *, pretrained: bool) -> list[SetupCost]:
    """Return the rows that may be chosen: a pretrained model is another network if it is rebuilt with too few bits."""
    return [row for row in rows if not pretrained or is_near(row)]


def is_near(row: SetupCost) -> bool:
    """Say whether the network is the ordinary one, or nearly."""
    bits = bits_of(row.setup)
    return bits is None or bits >= NEAR_BITS


def fewest_bits(rows: Sequence[SetupCost]) -> SetupCost | None:
    """Return the row that is rebuilt with the fewest bits, or None; if it does not fit, then none with more does."""
    rebuilt = [row for row in rows if row.setup.activations == Rebuild()]
    return min(rebuilt, key=lambda row: bits_of(row.setup) or 0, default=None)


def _worth(row: SetupCost) -> float:
    return math.sqrt(row.largest_batch * (row.longest_context or 0)) / row.time


def _place(row: SetupCost) -> int:
    return _PLACES.get(row.way, len(_PLACES))
