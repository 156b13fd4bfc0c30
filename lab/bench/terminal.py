"""A comparison as tables in the terminal; in a narrow terminal every row is a block of lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from lab.bench import numbers
from revformers.training.titled_table import TitledTable


def comparison_tables(comparison: Mapping[str, Any]) -> RenderableType:
    """Return the tables of `Comparison.run`."""
    network, options = comparison["network"], comparison["options"]
    return Group(
        Text(numbers.network_in_words(network)),
        dynamics_table(comparison["dynamics"], options["dynamics_steps"]),
        arms_table(comparison["arms"], options["arm_steps"]),
        depth_tables(comparison["depth"]),
    )


def dynamics_table(rows: Sequence[Mapping[str, Any]], steps: int) -> RenderableType:
    """Return one line per dynamics."""
    table = TitledTable(
        f"Every dynamics, {steps} steps each from the same weights on the same text",
        "Bits: kept per element and layer for the inverse. Loss: on held-out text. Exact: gradients to the bit.\n"
        "Time: forward and backward over that of the ordinary network storing activations, median of the steps.",
        left=("dynamics", "recurrence"),
        right=("bits", "loss", "exact", "time"),
        wraps="recurrence",
    )
    for row in rows:
        if "unavailable" in row:
            table.add(row["name"], row["unavailable"], "-", "-", "-", "-")
            continue
        table.add(
            row["name"],
            row["recurrence"],
            numbers.bits(row["side_information_bits"]),
            f"{row['validation_loss']:.3f}",
            numbers.yes_no(row.get("bit_exact")),
            f"{row['time_over_ordinary']['median']:.2f}",
        )
    return table


def arms_table(arms: Mapping[str, Any], steps: int) -> RenderableType:
    """Return one line per way to hold activations."""
    table = TitledTable(
        f"The same network three ways, {steps} steps each in turns",
        f"Dynamics: {arms['recurrence']}. "
        "Peak: above weights and gradients, in one forward and backward pass. Times: median (quartiles).\n"
        "Weights: whether they equal those of store after the last step, to the bit.",
        left=("activations",),
        right=("peak", "step", "time / store", "last loss", "weights"),
    )
    for row in arms["rows"]:
        table.add(
            row["arm"],
            numbers.mebibytes(row["peak"]),
            numbers.seconds(row["seconds"]["median"]),
            numbers.ratio(row["time_over_store"]),
            f"{row['losses'][-1]:.6f}",
            "-" if row["arm"] == "store" else "identical" if row["same_weights_as_store"] else "DIFFERENT",
        )
    return table


def depth_tables(depth: Mapping[str, Any]) -> RenderableType:
    """Return peak memory by depth, and its growth per added layer."""
    if "unavailable" in depth:
        return Text(f"Memory against depth was not measured: {depth['unavailable']}")
    names = list(dict.fromkeys(point["arm"] for point in depth["points"]))
    peaks = {(point["arm"], point["layers"]): point["peak"] for point in depth["points"]}
    table = TitledTable(
        "Peak memory of one step above weights and gradients",
        f"Width {depth['width']}, {depth['batch_size']} x {depth['sequence_length']} tokens, {depth['recurrence']}",
        right=("layers", *names),
    )
    for layers in sorted({point["layers"] for point in depth["points"]}):
        table.add(str(layers), *(numbers.mebibytes(peaks[name, layers]) for name in names))
    return Group(table, growth_table(depth["growth"], depth["layer_input_bytes"]))


def growth_table(rows: Sequence[Mapping[str, Any]], layer_input_bytes: int) -> RenderableType:
    """Return the growth of the peak per added layer."""
    table = TitledTable(
        "Growth of the peak per added layer",
        f"Shares are of one layer's input tensor, {layer_input_bytes:,} bytes.",
        left=("activations", "layers"),
        right=("bytes", "share", "side information", "beyond it"),
    )
    for row in rows:
        rebuilt = row["arm"] == "rebuild"
        table.add(
            row["arm"],
            f"{row['from_layers']} to {row['to_layers']}",
            f"{row['bytes_per_layer']:,.0f}",
            numbers.share(row["share_of_layer_input"]),
            numbers.share(row["side_information_share"]) if rebuilt else "-",
            numbers.share(row["excess_share"]) if rebuilt else "-",
        )
    return table
