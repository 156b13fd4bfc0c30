"""Console output of commands: progress bars in a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from revformers.streams import readable_streams
from revformers.training.launched import is_main

SECONDS_BETWEEN_LINES = 60.0
"""Least time between two lines about the progress of the same work, where there is no terminal for a bar."""


class CommandConsole(Console):
    """A console that leaves a pipe without a reader to the caller, where rich would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        error = sys.exception()
        assert error is not None
        raise error


def command_console(*, stderr: bool = False) -> Console:
    """Return the console of a command, on standard output or standard error.

    Text is shown as it is: nothing in brackets, in a path or a message, is markup. No encoding of the terminal makes
    printing fail; see `revformers.streams`. Of several processes only the main one prints.
    """
    readable_streams()
    return CommandConsole(stderr=stderr, markup=False, emoji=False, highlight=False, quiet=not is_main())


def say(console: Console, line: str) -> None:
    """Print a line without colours, markup or added line breaks."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.file.flush()  # a file or a pipe would show it only when its buffer is full


def progress_bar(console: Console, unit: str, *, transient: bool = False) -> Progress:
    """Return a progress bar for one task with a description; it is hidden outside a terminal.

    Args:
        console: the console that shows it.
        unit: the unit that is counted, such as "step".
        transient: whether to remove the bar at the end.

    """
    text = TextColumn("{task.description}", markup=False)
    columns = (TextColumn(unit), MofNCompleteColumn(), BarColumn(), text)
    left = (TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *left, console=console, transient=transient, disable=not console.is_terminal)


@contextmanager
def signs_of_life(console: Console, work: str) -> Iterator[None]:
    """Say once a minute, outside a terminal, that the work in the block goes on.

    For work of other libraries that reports no progress of its own to a file or a pipe.

    Args:
        console: where to say it.
        work: the work, such as "evaluating".

    """
    if console.is_terminal:
        yield
        return
    done, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(SECONDS_BETWEEN_LINES):
            with suppress(OSError):  # the work meets the error when it prints
                say(console, f"{work}: {timedelta(seconds=round(time.monotonic() - started))} so far")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
