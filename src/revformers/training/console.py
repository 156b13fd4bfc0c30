"""Console output of commands: progress bars in a terminal, plain lines elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def say(console: Console, line: str) -> None:
    """Print a line without colours, markup or added line breaks."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_bar(console: Console, unit: str, *, transient: bool = False) -> Progress:
    """Return a progress bar for one task with a description; it is hidden outside a terminal.

    Args:
        console: the console that shows it.
        unit: the unit that is counted, such as "step".
        transient: whether to remove the bar at the end.

    """
    columns = (TextColumn(unit), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    left = (TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *left, console=console, transient=transient, disable=not console.is_terminal)
