"""Puts into words which way to train a plan recommends, and why."""

from collections.abc import Sequence

from revformers.activations import Rebuild
from revformers.byte_size import size_in_words
from revformers.errors import counted
from revformers.planning.choose import NEAR_BITS, WORTH, choose, fewest_bits, is_near
from revformers.planning.cost import SetupCost
from revformers.planning.devices import Machine
from revformers.planning.setups import OVERLAPPED, bits_of
from revformers.setup import CHECKPOINT, OFFLOAD, STORE, Training

_NAMES = {
    STORE: ("store activations", "storing"),
    CHECKPOINT: ("use checkpointing", "checkpointing"),
    OVERLAPPED: ("offload the inputs of layers with Offload(), which copies while layers compute", "offloading"),
    OFFLOAD: ("offload the checkpoints with transformers", "transformers' offloading"),
}
"""What to do in each way of the ordinary network, and what that is called."""


def advise(
    rows: Sequence[SetupCost],
    chosen: SetupCost | None,
    fixed: int,
    machine: Machine,
    refusal: str | None,
    tiled: tuple[int, int] | None = None,
    training: Training = "full",
) -> str:
    """Return the recommended way to train and the reason, in a few sentences.

    Args:
        rows: the rows of the plan that may be chosen.
        chosen: the one of them that is.
        fixed: bytes of weights, gradients and optimizer states.
        machine: the machine.
        refusal: the reason that the model cannot be reversed, or None.
        tiled: tokens of a tile of the MLPs, and of the longest context of the chosen row with such tiles.
        training: what is trained.

    """
    if fixed > machine.memory:
        less = {"full": "train an adapter (lora or qlora), ", "lora": "train the adapter on NF4 weights (qlora), "}
        return (
            f"Weights, gradients and optimizer states alone do not fit: {less.get(training, '')}choose an optimizer "
            f"with smaller states, or use more memory."
        )
    if chosen is None:
        needed = min((row.host for row in rows if row.limited_by_host), default=0)
        host = f" Offloading one sequence takes {size_in_words(needed)} of the host." if needed else ""
        return f"No way to train fits one sequence: shorten it, or use more memory.{host}"
    checkpoint = next(row for row in rows if row.way == CHECKPOINT)
    action = _action(chosen)
    sentences = [
        f"{action[0].upper()}{action[1:]}{_reason(rows, chosen, checkpoint, refusal)}",
        *([] if chosen.setup == STORE else _further(rows, chosen, checkpoint, machine, tiled)),
    ]
    return " ".join(filter(None, sentences))


def _reason(rows: Sequence[SetupCost], chosen: SetupCost, checkpoint: SetupCost, refusal: str | None) -> str:
    """Return what follows the recommended action in its sentence."""
    if chosen.setup == STORE:
        return f": this fits up to {counted(chosen.largest_batch, 'sequence')}, and nothing is computed twice."
    if chosen is checkpoint:
        return f", which fits up to {_fits(checkpoint)}: {_why_checkpointing(rows, checkpoint, refusal)}"
    return f": {_against(chosen, checkpoint)}"


def _further(
    rows: Sequence[SetupCost],
    chosen: SetupCost,
    checkpoint: SetupCost,
    machine: Machine,
    tiled: tuple[int, int] | None,
) -> list[str]:
    """Return the sentences after the recommended action and its reason; some are empty."""
    return [
        _longer(chosen, tiled),
        _near(rows, chosen),
        _spending(rows, checkpoint),
        _of_the_host(rows, chosen, checkpoint, machine),
    ]


def _action(row: SetupCost) -> str:
    """Return what to do as a verb phrase, without a capital letter."""
    action, _ = _NAMES.get(row.way) or (f"rebuild with {_bits(row)}", "")
    return f"{action}{_in_tiles(row)}"


def _name(row: SetupCost) -> str:
    """Return what a way is called, without its tiles."""
    _, name = _NAMES.get(row.way) or ("", f"rebuilding with {_bits(row)}")
    return name


def _bits(row: SetupCost) -> str:
    return counted(bits_of(row.setup) or 0, "bit")


def _in_tiles(row: SetupCost) -> str:
    return "" if row.setup.mlp_tile is None else f" in MLP tiles of {row.setup.mlp_tile:,} tokens"


def _fits(row: SetupCost) -> str:
    return f"{counted(row.largest_batch, 'sequence')} or {counted(row.longest_context or 0, 'token')}"


def _fits_in_time(row: SetupCost, checkpoint: SetupCost) -> str:
    time = "" if row is checkpoint else f", at {row.time / checkpoint.time:.2f} times the time of checkpointing"
    return f"fits up to {_fits(row)}{time}"


def _of_host(row: SetupCost) -> str:
    return f"{size_in_words(row.host_of_largest_batch or row.host)} of the host"


def _against(row: SetupCost, checkpoint: SetupCost) -> str:
    """Return what a row fits and takes, compared with checkpointing."""
    host = f" with {_of_host(row)}" if row.host else ""
    tiles = "" if row.setup.mlp_tile == checkpoint.setup.mlp_tile else _in_tiles(checkpoint)
    return (
        f"this fits up to {_fits(row)}{host}, where checkpointing{tiles} fits {_fits(checkpoint)}. A step on one "
        f"sequence is predicted to take {row.time / checkpoint.time:.2f} times as long as with checkpointing."
    )


def _why_checkpointing(rows: Sequence[SetupCost], checkpoint: SetupCost, refusal: str | None) -> str:
    """Return the reason that nothing is worth more than checkpointing."""
    if refusal:
        return f"the model cannot be reversed ({refusal.rstrip('.')})."
    best = fewest_bits(rows)
    if best is None:
        return f"a pretrained model becomes another network when it is rebuilt with fewer than {NEAR_BITS} bits."
    if not best.largest_batch:
        return "rebuilding does not fit."
    if best.memory.states + best.memory.side_information >= checkpoint.memory.activations:
        return "two states and side information take no less than its checkpoints."
    return (
        f"{_name(best)} {_fits_in_time(best, checkpoint)}, which is hardly more for its time, and trains another "
        f"network."
    )


def _longer(chosen: SetupCost, tiled: tuple[int, int] | None) -> str:
    """Return a sentence if the recommended row fits a much longer context with few tiles."""
    if tiled is None or tiled[1] < WORTH * (chosen.longest_context or 0):
        return ""
    return (
        f"With MLP tiles of {tiled[0]:,} tokens, {_name(chosen)} fits {counted(tiled[1], 'token')}, for one more "
        f"evaluation of the MLPs."
    )


def _near(rows: Sequence[SetupCost], chosen: SetupCost) -> str:
    """Return a sentence if a rebuilt network is too far from that of a pretrained model."""
    if chosen.setup.activations != Rebuild() or is_near(chosen):
        return ""
    near = fewest_bits([row for row in rows if is_near(row)])
    if near is None or not near.largest_batch:
        return f"This is for training from scratch: a pretrained model needs {NEAR_BITS} bits or more."
    return (
        f"This is for training from scratch. A pretrained model needs {NEAR_BITS} bits or more; {_name(near)} fits up "
        f"to {_fits(near)}."
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
        other = choose(others, host_is_known=True)
        limit = " The memory of the host is what limits this." if chosen.limited_by_host else ""
        if other is None:
            return limit.strip()
        return (
            f"Where the host's memory or link is shared, {_action(other)} instead, which "
            f"{_fits_in_time(other, checkpoint)}.{limit}"
        )
    offload = next((row for row in rows if row.way == OVERLAPPED), None) or next(
        (row for row in rows if row.way == OFFLOAD), None
    )
    if machine.host_memory is not None:
        if offload is None or (not offload.largest_batch and not offload.limited_by_host):
            return ""
        if not offload.limited_by_host:
            return f"Offloading{_in_tiles(offload)} {_fits_in_time(offload, checkpoint)}."
        fitting = f"limits offloading to {_fits(offload)}" if offload.largest_batch else "is too small to offload"
        return f"The memory of the host {fitting}; one sequence takes {size_in_words(offload.host)} there."
    known = choose(rows, host_is_known=True)
    if known is None or not known.setup.activations.on_host:
        return ""
    return (
        f"If the host has {size_in_words(known.host_of_largest_batch)} for it (--host_memory), {_action(known)}: this "
        f"{_fits_in_time(known, checkpoint)}."
    )
