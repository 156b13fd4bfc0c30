"""Recommends one way to train from the rows of a plan, with the reason."""

import math
from collections.abc import Sequence
from dataclasses import replace

from revformers.activations import Rebuild
from revformers.byte_size import size_in_words
from revformers.errors import counted
from revformers.planning.cost import SetupCost
from revformers.planning.devices import Machine
from revformers.planning.setups import OVERLAPPED, bits_of
from revformers.setup import CHECKPOINT, OFFLOAD, STORE

WORTH = 1.1
"""Factor by which a way must be worth more than one that stands before it in `_order`, to be recommended instead."""

ANY = 2**62
"""More bytes than any host has."""

NEAR_BITS = 2
"""Bits of side information from which a converted model computes nearly what the pretrained one did; see
docs/guides/convert.md."""


def choose(rows: Sequence[SetupCost], machine: Machine, *, pretrained: bool = False) -> SetupCost | None:
    """Return the row to recommend, or None if none fits.

    Storing is fastest, so it is chosen if it fits. Otherwise a row is worth the geometric mean of the sequences and the
    tokens that fit, divided by the time of a step. Checkpointing is chosen unless another row is worth a tenth more,
    as it needs nothing else; then offloading, which trains the ordinary network as well; then rebuilding. Offloading is
    chosen only if the memory of the host is known or nothing else fits. A pretrained model is rebuilt with at least
    `NEAR_BITS` bits, as it becomes another network with fewer. Budgets, which use the memory that others leave, are not
    chosen.

    Args:
        rows: the rows of the plan.
        machine: the machine.
        pretrained: whether the training needs a pretrained model, as that of an adapter does.

    """
    fitting = [
        row
        for row in _candidates(rows, pretrained=pretrained)
        if row.largest_batch and not row.setup.activations.observes
    ]
    stored = [row for row in fitting if row.way == STORE]
    on_device = [row for row in fitting if not row.setup.activations.on_host]
    choices = stored or (fitting if machine.host_memory is not None else on_device) or fitting
    most = max(map(_worth, choices), default=0.0)
    return min((row for row in choices if WORTH * _worth(row) >= most), key=_order, default=None)


def recommend(
    rows: Sequence[SetupCost],
    chosen: SetupCost | None,
    fixed: int,
    machine: Machine,
    refusal: str | None,
    *,
    pretrained: bool = False,
    tiled: tuple[int, int] | None = None,
) -> str:
    """Return the recommended way to train and the reason, in a few sentences.

    Args:
        rows: the rows of the plan.
        chosen: what `choose` returns for them.
        fixed: bytes of weights, gradients and optimizer states.
        machine: the machine.
        refusal: the reason that the model cannot be reversed, or None.
        pretrained: whether the training needs a pretrained model, as that of an adapter does.
        tiled: tokens of a tile of the MLPs, and of the longest context of the chosen row with such tiles.

    """
    if fixed > machine.memory:
        return (
            "Weights, gradients and optimizer states alone do not fit: train an adapter (lora or qlora), choose an "
            "optimizer with smaller states, or use more memory."
        )
    rows = _candidates(rows, pretrained=pretrained)
    if chosen is None:
        needed = min((row.host for row in rows if row.limited_by_host), default=0)
        host = f" Offloading one sequence takes {size_in_words(needed)} of the host." if needed else ""
        return f"No way to train fits one sequence: shorten it, or use more memory.{host}"
    if chosen.setup == STORE:
        return (
            f"Store activations: this fits up to {counted(chosen.largest_batch, 'sequence')}, and nothing is computed "
            f"twice."
        )
    checkpoint = next(row for row in rows if row.way == CHECKPOINT)
    sentences = [
        f"{_advice(checkpoint)}, which fits up to {_fits(checkpoint)}: {_why_checkpointing(rows, checkpoint, refusal)}"
        if chosen is checkpoint
        else f"{_advice(chosen)}: {_against(chosen, checkpoint)}",
        _near(rows, chosen),
        _spending(rows, checkpoint),
        _of_the_host(rows, chosen, checkpoint, machine),
    ]
    if tiled is not None and tiled[1] >= WORTH * chosen.longest_context:
        sentences.append(
            f"With MLP tiles of {tiled[0]:,} tokens, it fits {counted(tiled[1], 'token')}, for one more evaluation of "
            f"the MLPs."
        )
    return " ".join(filter(None, sentences))


def _candidates(rows: Sequence[SetupCost], *, pretrained: bool) -> list[SetupCost]:
    """Return the rows that a pretrained model can be trained by, if it is one, or else all rows."""
    return [
        row
        for row in rows
        if not pretrained or (NEAR_BITS if (bits := bits_of(row.setup)) is None else bits) >= NEAR_BITS
    ]


def _worth(row: SetupCost) -> float:
    return math.sqrt(row.largest_batch * row.longest_context) / row.time


def _order(row: SetupCost) -> tuple[int, float]:
    """Return the place of a row among those that are worth about as much; of rebuilt ones, the best comes first."""
    place = {CHECKPOINT: 0, OVERLAPPED: 1, OFFLOAD: 2}.get(row.way, 3)
    return place, -_worth(row)


def _advice(row: SetupCost) -> str:
    named = {
        STORE: "Store activations",
        CHECKPOINT: "Use checkpointing",
        OVERLAPPED: "Offload the inputs of layers with Offload(), which copies while layers compute",
        OFFLOAD: "Offload the checkpoints with transformers",
    }
    advice = named.get(row.way) or f"Rebuild with {counted(bits_of(row.setup) or 0, 'bit')}"
    return advice if row.setup.mlp_tile is None else f"{advice}, in MLP tiles of {row.setup.mlp_tile:,} tokens"


def _fits(row: SetupCost) -> str:
    return f"{counted(row.largest_batch, 'sequence')} or {counted(row.longest_context, 'token')}"


def _fits_in_time(row: SetupCost, checkpoint: SetupCost) -> str:
    return f"fits up to {_fits(row)}, at {row.time / checkpoint.time:.2f} times the time of checkpointing"


def _of_host(row: SetupCost) -> str:
    return f"{size_in_words(row.host_of_largest_batch or row.host)} of the host"


def _against(row: SetupCost, checkpoint: SetupCost) -> str:
    """Return what a row fits and takes, compared with checkpointing."""
    host = f" with {_of_host(row)}" if row.host else ""
    return (
        f"this fits up to {_fits(row)}{host}, where checkpointing fits {_fits(checkpoint)}. A step on one sequence is "
        f"predicted to take {row.time / checkpoint.time:.2f} times as long as with checkpointing."
    )


def _why_checkpointing(rows: Sequence[SetupCost], checkpoint: SetupCost, refusal: str | None) -> str:
    """Return the reason that nothing is worth more than checkpointing."""
    if refusal:
        return f"the model cannot be reversed ({refusal.rstrip('.')})."
    rebuilt = [row for row in rows if row.setup.activations == Rebuild()]
    if not rebuilt:
        return f"a pretrained model becomes another network when it is rebuilt with fewer than {NEAR_BITS} bits."
    best = max(rebuilt, key=_worth)
    if not best.largest_batch:
        return "rebuilding does not fit."
    if best.memory.states + best.memory.side_information >= checkpoint.memory.activations:
        return "two states and side information take no less than its checkpoints."
    return (
        f"rebuilding {_fits_in_time(best, checkpoint)}, which is hardly more for its time, and trains another network."
    )


def _near(rows: Sequence[SetupCost], chosen: SetupCost) -> str:
    """Return a sentence if a rebuilt network is too far from that of a pretrained model."""
    if chosen.setup.activations != Rebuild() or (bits_of(chosen.setup) or 0) >= NEAR_BITS:
        return ""
    near = [row for row in rows if row.setup.activations == Rebuild() and (bits_of(row.setup) or 0) >= NEAR_BITS]
    best = max(near, key=_worth, default=None)
    if best is None or not best.largest_batch:
        return f"This is for training from scratch: a pretrained model needs {NEAR_BITS} bits or more."
    return (
        f"This is for training from scratch. A pretrained model needs {NEAR_BITS} bits or more, which fit up to "
        f"{_fits(best)}."
    )


def _spending(rows: Sequence[SetupCost], checkpoint: SetupCost) -> str:
    """Return a sentence if a budget that uses the memory left by rebuilding is faster than checkpointing."""
    budget = next((row for row in rows if row.setup.activations.observes), None)
    if budget is None or budget.time >= checkpoint.time:
        return ""
    return (
        f"With a Budget that spends the rest of the memory, {counted(checkpoint.largest_batch, 'sequence')} take "
        f"{budget.time / checkpoint.time:.2f} times as long as with checkpointing, as predicted."
    )


def _of_the_host(rows: Sequence[SetupCost], chosen: SetupCost, checkpoint: SetupCost, machine: Machine) -> str:
    """Return a sentence on what the host allows: on offloading, if it is not advised, or on doing without."""
    if chosen.setup.activations.on_host:
        others = [row for row in rows if not row.setup.activations.on_host]
        other = choose(others, machine)
        limit = " The memory of the host is what limits this." if chosen.limited_by_host else ""
        if other is None:
            return limit.strip()
        return (
            f"Where the host's memory or link is shared, {_advice(other)[0].lower()}{_advice(other)[1:]} instead, "
            f"which {_fits_in_time(other, checkpoint)}.{limit}"
        )
    offload = next((row for row in rows if row.way == OVERLAPPED), None) or next(
        (row for row in rows if row.way == OFFLOAD), None
    )
    if machine.host_memory is not None:
        if offload is None or (not offload.largest_batch and not offload.limited_by_host):
            return ""
        if not offload.limited_by_host:
            return f"Offloading {_fits_in_time(offload, checkpoint)}."
        fitting = f"limits offloading to {_fits(offload)}" if offload.largest_batch else "is too small to offload"
        return f"The memory of the host {fitting}; one sequence takes {size_in_words(offload.host)} there."
    known = choose(rows, replace(machine, host_memory=ANY))
    if known is None or not known.setup.activations.on_host:
        return ""
    return (
        f"If the host has {size_in_words(known.host_of_largest_batch)} for it (--host_memory), o{_advice(known)[1:]}: "
        f"this {_fits_in_time(known, checkpoint)}."
    )
