"""The table of a plan."""

from revformers.byte_size import UNITS
from revformers.planning.plan import Plan
from revformers.training.titled_table import TitledTable

HEADINGS = ("kept", "states", "layer", "head", "total", "host", "batch", "context", "time")


def plan_table(plan: Plan, device: str) -> TitledTable:
    """Return a table with a row for each setup, for one sequence; `device` names the device of the predicted times.

    "layer" is the working set of one layer. Figures are in GiB, or in MiB if the device or every total is below 1 GiB.
    """
    largest = min(plan.machine.memory, max(row.memory.total for row in plan.setups))
    size, unit = plan.size, "GiB" if largest >= UNITS["GiB"] else "MiB"

    def written(count: int) -> str:
        number = count / UNITS[unit]
        return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:,.0f}"

    table = TitledTable(
        f"{size.parameters:,} parameters, {size.trained:,} trained\nweights {written(size.weights)}, gradients "
        f"{written(size.gradients)}, optimizer {written(size.optimizer)} of {written(plan.machine.memory)} {unit}",
        f"{unit}, one sequence of {plan.sequence_length:,} tokens; time as predicted for {device}, store = 1"
        + _notes(plan),
        left=("activations",),
        right=HEADINGS,
    )
    for row in plan.setups:
        memory = row.memory
        table.add(
            row.title + "*" * (row.setup.mlp_tile != plan.choices.mlp_tile),
            written(memory.activations + memory.side_information),
            written(memory.states),
            written(memory.working + memory.other),
            written(memory.head),
            written(memory.total),
            written(row.host),
            _count(row.largest_batch),
            "-" if row.longest_context is None else _count(row.longest_context),
            f"{row.time:.2f}",
        )
    return table


def _notes(plan: Plan) -> str:
    """Return further lines on how the networks are trained."""
    choices, notes = plan.choices, []
    if choices.mlp_tile is not None:
        notes.append(f"in MLP tiles of {choices.mlp_tile:,} tokens")
    if choices.granularity == "branch":
        notes.append("rebuilt by branch")
    if choices.predictors is not None:
        notes.append(f"rebuilt with update predictors of {', '.join(choices.predictors.features)}")
    if any(row.setup.activations.observes for row in plan.setups):
        notes.append("budget: at the largest batch of checkpointing")
    for tile in {row.setup.mlp_tile for row in plan.setups} - {None, choices.mlp_tile}:
        notes.append(f"* in MLP tiles of {tile:,} tokens, without which not one sequence fits")
    return "".join(f"\n{note}" for note in notes)


def _count(number: int) -> str:
    """Return a number of sequences or tokens as text of at most seven characters, so that ten columns fit."""
    return f"{number:,}" if number < 10**6 else f"{number / 10**6:,.3g} M"
