"""The exit codes of commands; 0 is success."""

import signal

from revformers.cli.termination import Terminated
from revformers.streams import CLOSED_PIPE as CLOSED_PIPE

CHECK_FAILED = 1
USER_ERROR = 2
"""A mistake that the user can correct."""


def after_signal(number: int) -> int:
    """Return the exit code of a process that a signal ended."""
    return 128 + number


INTERRUPTED = after_signal(signal.SIGINT)
TERMINATED = after_signal(signal.SIGTERM)


def ended(stop: BaseException) -> tuple[str, int]:
    """Return the word for what ended a command, Ctrl-C or SIGTERM, and the exit code."""
    return ("Terminated", TERMINATED) if isinstance(stop, Terminated) else ("Interrupted", INTERRUPTED)
