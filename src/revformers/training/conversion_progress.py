"""The progress display of a conversion: a bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console

from revformers.training.console import SECONDS_BETWEEN_LINES, progress_bar, say

PASSES = ("fits to the original network", "fits along the converted network")
"""The passes over the layers; a further conversion of the same model has only the second."""


class ConversionProgress:
    """Shows how many layers are done and about how long the others will take, from the first layer on.

    Pass it to `revformers.convert` as `progress`, inside its context, which restores the terminal at the end. The
    estimate leaves out layers that were done before an interruption.

    Args:
        console: where to show it.
        layers: the number of layers of the model.
        clock: returns the time in seconds.

    """

    def __init__(self, console: Console, layers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._layers = layers
        self._clock = clock
        self._started = self._shown = clock()
        self._done = self._skipped = 0
        self._bar = progress_bar(console, "layer", transient=True)
        self._task = self._bar.add_task("")

    def __enter__(self) -> "ConversionProgress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` layers are done, which are those of all passes."""
        now = self._clock()
        if done == 0:  # the first of several conversions, or the next one
            self._started, self._done, self._skipped = now, 0, 0
            self._bar.reset(self._task, total=total)
            return
        self._skipped += done - self._done - 1
        self._done = done
        passed, layer = divmod(done - 1, self._layers)
        passes = total // self._layers
        work = f"pass {passed + 1} of {passes}, {PASSES[passed - passes]}"
        self._bar.update(self._task, completed=done, total=total, description=work)
        first = done == self._skipped + 1
        if not self._console.is_terminal and (first or done == total or now - self._shown >= SECONDS_BETWEEN_LINES):
            self._shown = now
            left = timedelta(seconds=round((now - self._started) / (done - self._skipped) * (total - done)))
            say(self._console, f"{work}: layer {layer + 1}/{self._layers}  about {left} left")
