"""What commands show while they work: a bar in a terminal, plain lines elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def say(console: Console, line: str) -> None:
    """Print a line as it is: no colours, no markup, and no line breaks of the console's own."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_bar(console: Console, unit: str, *, transient: bool = False) -> Progress:
    """Return a bar of `unit`s for one task with a description, which shows nothing outside a terminal.

    Args:
        console: where to show it.
        unit: what is counted, such as "step".
        transient: whether it is removed at the end.

    """
    columns = (TextColumn(unit), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    left = (TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *left, console=console, transient=transient, disable=not console.is_terminal)
