"""Summarises the measured numbers in plain sentences, whether they are favourable or not."""

from collections.abc import Mapping, Sequence
from typing import Any

from lab.bench import numbers


def read_arms(arms: Mapping[str, Any], network: Mapping[str, Any]) -> list[str]:
    """Return sentences on the memory, the time and the losses of storing, checkpointing and rebuilding."""
    rows = {row["arm"]: row for row in arms["rows"]}
    store, checkpoint, rebuild = (rows[name] for name in ("store", "checkpoint", "rebuild"))
    element_bytes = 2 if network["precision"] == "bfloat16" else 4
    logits = network["batch_size"] * network["sequence_length"] * network["vocabulary"] * element_bytes
    return [
        f"Memory: rebuilding peaked at {numbers.mebibytes(rebuild['peak'])} above weights and gradients, "
        f"{_against(rebuild['peak'], store['peak'])} than storing ({numbers.mebibytes(store['peak'])}) and "
        f"{_against(rebuild['peak'], checkpoint['peak'])} than checkpointing "
        f"({numbers.mebibytes(checkpoint['peak'])}).",
        f"Every arm computes its loss from the logits of a few tokens at a time; those of all tokens would take "
        f"{numbers.mebibytes(logits)} here, and the loss would make several copies."
        if network.get("head", "own") != "own"
        else f"Part of every peak is the vocabulary head, which no way of holding activations changes: one copy of its "
        f"logits alone takes {numbers.mebibytes(logits)} here, and the loss makes several.",
        f"Time: a rebuilding step took {numbers.seconds(rebuild['seconds']['median'])}, "
        f"{rebuild['time_over_store']['median']:.2f} times as long as storing and "
        f"{rebuild['time_over_checkpoint']['median']:.2f} times as long as checkpointing. Rebuilding, like "
        f"checkpointing, evaluates every layer twice: it buys memory with time.",
        _read_losses(arms["rows"]),
    ]


def read_depth(depth: Mapping[str, Any]) -> list[str]:
    """Return sentences on how the peak of each arm grows with depth."""
    points = depth["points"]
    peak = {(point["arm"], point["layers"]): point["peak"] for point in points}
    layers = sorted({point["layers"] for point in points})
    shallow, deep = layers[0], layers[-1]

    grown = {
        arm: (peak[arm, deep] - peak[arm, shallow]) / (deep - shallow) for arm in ("store", "checkpoint", "rebuild")
    }
    shares = {arm: numbers.share(grown[arm] / depth["layer_input_bytes"]) for arm in grown}
    sentences = [
        f"From {shallow} to {deep} layers each added layer raised the peak of storing by "
        f"{numbers.mebibytes(grown['store'])}, of checkpointing by {numbers.mebibytes(grown['checkpoint'])} and of "
        f"rebuilding by {grown['rebuild']:,.0f} bytes. As shares of one layer's input tensor: {shares['store']}, "
        f"{shares['checkpoint']} and {shares['rebuild']}.",
        f"At {deep} layers rebuilding needs {_against(peak['rebuild', deep], peak['store', deep])} than storing and "
        f"{_against(peak['rebuild', deep], peak['checkpoint', deep])} than checkpointing.",
    ]
    if depth["steps_per_layer"] == 2:
        sentences.append(
            "These dynamics step twice per layer, after attention and after the MLP, so checkpointing keeps two "
            "tensors per layer."
        )
    worse = [number for number in layers if peak["rebuild", number] > peak["checkpoint", number]]
    if worse:
        sentences.append(
            f"At {numbers.listed([str(number) for number in worse])} layers checkpointing needs less: rebuilding holds "
            f"two states in integers, which so few layers do not pay for."
        )
    kept = [row["side_information_share"] for row in depth["growth"] if row["arm"] == "rebuild"]
    if any(kept):
        sentences.append(
            "These dynamics contract, so each layer keeps a few bits per element as side information; that is the "
            "growth of rebuilding."
        )
    return sentences


def read_dynamics(rows: Sequence[Mapping[str, Any]], steps: int) -> list[str]:
    """Return sentences on the table of dynamics."""
    verified = [row for row in rows if "bit_exact" in row]
    unequal = [row for row in verified if not row["bit_exact"]]
    wrong = [row["name"] for row in unequal if row.get("decided", True)]
    undecided = [row["name"] for row in unequal if row["name"] not in wrong]
    exactness = []
    if wrong:
        exactness.append(
            f"The rebuilt gradients of {numbers.listed(wrong)} differ from the stored ones; do not train with them on "
            f"this machine."
        )
    if undecided:
        exactness.append(
            f"The rebuilt gradients of {numbers.listed(undecided)} could not be compared with the stored ones to the "
            f"bit, because a kernel varies from call to call and has no deterministic form."
        )
    if not unequal:
        exactness.append(
            f"All {len(verified)} reversible dynamics gave gradients equal to those of stored activations, to the bit."
        )
    return [
        *exactness,
        f"The losses come from {steps} steps with one seed and one learning rate. They show that every dynamics "
        f"trains, not which one trains best.",
    ]


def _read_losses(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say whether all arms computed the same losses and weights."""
    steps = len(rows[0]["losses"])
    different = [row["arm"] for row in rows if not (row["same_losses_as_store"] and row["same_weights_as_store"])]
    if different:
        return (
            f"Loss: {numbers.listed(different)} computed something other than storing within {steps} steps. That must "
            f"not happen where all kernels are deterministic."
        )
    return (
        f"Loss: all three computed the same loss in each of the {steps} steps and ended with the same weights, to the "
        f"bit. How activations are held does not change what is learned."
    )


def _against(one: float, other: float) -> str:
    """Say how much less or more `one` is than `other`, e.g. "4.4 times less" or "5% more"."""
    if one == other:
        return "no less"
    word, large, small = ("less", other, one) if one < other else ("more", one, other)
    if large >= 2 * small:
        return f"{large / small:.1f} times {word}"
    return f"{100 * abs(one / other - 1):.0f}% {word}"
