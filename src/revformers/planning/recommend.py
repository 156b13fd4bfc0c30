"""Recommends one way to train from the rows of a plan, with the reason."""

from collections.abc import Sequence

from revformers.activations import Rebuild
from revformers.errors import counted
from revformers.planning.cost import SetupCost
from revformers.planning.setups import bits_of
from revformers.setup import CHECKPOINT, OFFLOAD, STORE

WORTH = 1.1
"""Factor by which another network, or a slower step, must fit more before it is recommended."""


NEAR_BITS = 2
"""Bits of side information from which a converted model computes nearly what the pretrained one did; see
docs/guides/convert.md."""


def recommend(
    rows: Sequence[SetupCost], fixed: int, memory: int, refusal: str | None, *, pretrained: bool = False
) -> str:
    """Return the recommended way to train and the reason, in a few sentences.

    Storing is fastest, so it is recommended if it fits. Checkpointing trains the ordinary network, so it is recommended
    unless rebuilding fits a tenth more. A pretrained model is rebuilt with at least `NEAR_BITS` bits, as it becomes
    another network with fewer.

    Args:
        rows: the rows of the plan.
        fixed: bytes of weights, gradients and optimizer states.
        memory: the budget, bytes.
        refusal: the reason that the model cannot be reversed, or None.
        pretrained: whether the training needs a pretrained model, as that of an adapter does.

    """
    if fixed > memory:
        return (
            "Weights, gradients and optimizer states alone do not fit: train an adapter (lora or qlora), choose an "
            "optimizer with smaller states, or use more memory."
        )
    near = [row for row in rows if row.setup.activations == Rebuild() and (bits_of(row.setup) or 0) >= NEAR_BITS]
    if pretrained:
        rows = [row for row in rows if row.setup.ordinary or row in near]
    fitting = [row for row in rows if row.largest_batch]
    if not fitting:
        return "No way to train fits one sequence: shorten it, or use more memory."
    stored = next((row for row in fitting if row.setup == STORE), None)
    if stored:
        return f"Store activations: up to {_sequences(stored)} fit, and nothing is computed twice."
    checkpoint = next(row for row in rows if row.setup == CHECKPOINT)
    rebuilt = [row for row in fitting if row.setup.activations == Rebuild()]
    best = max(rebuilt, key=lambda row: (row.largest_batch, row.longest_context, -row.time), default=None)
    if best is None and not checkpoint.largest_batch:
        (offload,) = fitting
        host = offload.host_of_largest_batch / 2**30
        return f"Offload the checkpoints: nothing else fits, and {_sequences(offload)} need {host:.1f} GiB of the host."
    if best is None:
        reason = (
            f"the model cannot be reversed ({refusal})"
            if refusal
            else "rebuilding does not fit"
            if near or not pretrained
            else f"a pretrained model becomes another network when it is rebuilt with fewer than {NEAR_BITS} bits"
        )
        advice = f"Use checkpointing, up to {_sequences(checkpoint)}: {reason.rstrip('.')}."
        return advice + _offloading(rows, checkpoint)
    more = max(
        best.largest_batch / max(1, checkpoint.largest_batch), best.longest_context / max(1, checkpoint.longest_context)
    )
    if checkpoint.largest_batch and more < WORTH:
        kept = best.memory.states + best.memory.side_information
        reason = (
            "two 64-bit states and side information take no less than its checkpoints"
            if kept >= checkpoint.memory.activations
            else "rebuilding fits hardly more, and trains another network"
        )
        advice = f"Use checkpointing, up to {_sequences(checkpoint)}: {reason}."
        return advice + _spending(rows, checkpoint) + _offloading(rows, checkpoint)
    return (
        f"{_rebuilding(best)} fit, where checkpointing fits {_sequences(checkpoint)} or "
        f"{counted(checkpoint.longest_context, 'token')}. A step on one sequence is predicted to take "
        f"{best.time / checkpoint.time:.2f} times as long as with checkpointing."
        + _pretraining(best, near)
        + _spending(rows, checkpoint)
        + _offloading(rows, best)
    )


def _pretraining(best: SetupCost, near: Sequence[SetupCost]) -> str:
    """Return another sentence if the recommended network is too far from that of a pretrained model."""
    if (bits_of(best.setup) or 0) >= NEAR_BITS:
        return ""
    most = max(near, key=lambda row: (row.largest_batch, row.longest_context), default=None)
    if most is None or not most.largest_batch:
        return f" This is for training from scratch: a pretrained model needs {NEAR_BITS} bits or more."
    return f" This is for training from scratch. For a pretrained model, r{_rebuilding(most)[1:]} fit."


def _rebuilding(row: SetupCost) -> str:
    bits = counted(bits_of(row.setup) or 0, "bit")
    return f"Rebuild with {bits}: up to {_sequences(row)} or {counted(row.longest_context, 'token')}"


def _spending(rows: Sequence[SetupCost], checkpoint: SetupCost) -> str:
    """Return another sentence if a budget that uses the memory left by rebuilding is faster than checkpointing."""
    budget = next((row for row in rows if row.setup.activations.observes), None)
    if budget is None or budget.time >= checkpoint.time:
        return ""
    return (
        f" With a Budget that spends the rest of the memory, {_sequences(checkpoint)} take "
        f"{budget.time / checkpoint.time:.2f} times as long as with checkpointing, as predicted."
    )


def _offloading(rows: Sequence[SetupCost], recommended: SetupCost) -> str:
    """Return another sentence if offloading fits more than the recommended way; its speed is not known."""
    offload = next((row for row in rows if row.setup == OFFLOAD), None)
    if offload is None or offload.largest_batch <= recommended.largest_batch:
        return ""
    host = offload.host_of_largest_batch / 2**30
    return (
        f" Offloaded checkpoints fit {_sequences(offload)}, with {host:.1f} GiB of the host, if its link to the device "
        f"keeps up."
    )


def _sequences(row: SetupCost) -> str:
    return counted(row.largest_batch, "sequence")
