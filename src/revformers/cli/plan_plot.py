"""The plot of a plan: memory over the length of one sequence, or over the number of sequences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from revformers.planning.cost import SetupCost
from revformers.planning.plan import Plan
from revformers.planning.setups import title_of
from revformers.planning.step import step_memory
from revformers.setup import Workload

Axis = Literal["length", "batch"]

POINTS = 6
"""Points of a curve, besides the one at its beginning."""


def draw(workload: Workload, plan: Plan, axis: Axis, file: Path) -> None:
    """Draw the memory of every setup, and of the device, to `file`, in the format that its suffix names.

    Args:
        workload: the workload of the plan.
        plan: the plan.
        axis: "length" varies the tokens of one sequence, "batch" the number of sequences of the plan's length.
        file: e.g. plan.svg.

    """
    setups = [row.setup for row in plan.setups if not row.setup.activations.observes]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    at = _places(plan.setups, axis, plan.sequence_length, plan.longest_readable)
    for colour, setup in enumerate(setups):
        totals = []
        for place in at:
            batch, tokens = (1, place) if axis == "length" else (place, plan.sequence_length)
            step = step_memory(workload, setup, batch, tokens, fused=True).device.total
            totals.append((step + plan.size.total) / 2**30)
        axes.plot(
            at,
            totals,
            color=f"C{colour}",
            marker="o",
            markersize=3,
            linewidth=1.5,
            label=title_of(setup),
            gid=title_of(setup),
        )
    axes.axhline(plan.machine.memory / 2**30, color="grey", linewidth=1, linestyle="--", label="memory")
    if plan.size.total < plan.machine.memory:
        axes.axhspan(0, plan.size.total / 2**30, color="grey", alpha=0.12, label="weights, gradients, optimizer")
    axes.set(
        xlabel="tokens of one sequence" if axis == "length" else f"sequences of {plan.sequence_length:,} tokens",
        ylabel="GiB",
        xlim=(0, None),
        # The curve of storing soon exceeds the memory, and is cut off above it.
        ylim=(0, 1.3 * max(plan.machine.memory, plan.size.total) / 2**30),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _places(rows: Sequence[SetupCost], axis: Axis, tokens: int, longest: int | None) -> list[int]:
    """Return the positions of the curves' points, from a small one to one that exceeds the device's memory.

    `longest` is the most tokens of a sequence that the model can read; None for no limit.
    """
    least = min(256, tokens) if axis == "length" else 1
    limits = [(row.longest_context or 0) if axis == "length" else row.largest_batch for row in rows if not row.host]
    most = max(1.2 * max(limits, default=0), 2 * (tokens if axis == "length" else 1))
    if axis == "length" and longest is not None:
        most = min(most, longest)
    return sorted({least, *(max(least, round(most * point / POINTS)) for point in range(1, POINTS + 1))})
