"""A plan as a table."""

from rich import box
from rich.table import Table

from revformers.memory.plan import Plan

HEADINGS = ("kept", "states", "layer", "head", "total", "host", "batch", "context", "time")


def plan_table(plan: Plan, device: str) -> Table:
    """Return a row a way, in GiB, for one sequence; `device` names what the predicted times are for.

    "layer" is the working set of one.
    """
    size = plan.size
    table = Table(
        title=f"{size.parameters:,} parameters, {size.trained:,} trained\nweights {_gib(size.weights)}, gradients "
        f"{_gib(size.gradients)}, optimizer {_gib(size.optimizer)} of {_gib(plan.memory)} GiB",
        # Ten columns within the 80 characters of a plain terminal.
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=f"GiB, one sequence of {plan.sequence_length:,} tokens; time as predicted for {device}, store = 1",
    )
    table.add_column("activations", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", overflow="fold")  # a cut number would be a wrong one
    for way in plan.ways:
        memory = way.memory
        table.add_row(
            way.title,
            _gib(memory.activations + memory.side_information),
            _gib(memory.states),
            _gib(memory.working + memory.other),
            _gib(memory.head),
            _gib(memory.total),
            _gib(way.host),
            f"{way.largest_batch:,}",
            f"{way.longest_context:,}",
            f"{way.time:.2f}",
        )
    return table


def _gib(number: int) -> str:
    gibibytes = number / 2**30
    if 0 < gibibytes < 0.0005:
        return "<0.001"
    return f"{gibibytes:.3f}" if 0 < gibibytes < 1 else f"{gibibytes:.3g}" if gibibytes < 1000 else f"{gibibytes:,.0f}"
