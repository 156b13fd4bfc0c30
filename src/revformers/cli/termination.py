"""SIGTERM, which ends a process without a word, as an exception that ends a command with words."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """Raised where SIGTERM arrives."""


@contextmanager
def raised_on_termination() -> Iterator[None]:
    """Raise Terminated in this block at SIGTERM; the main thread alone can."""
    process = os.getpid()

    def receive(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)  # in a child, such as one that reads data
        os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, receive) or signal.SIG_DFL  # None if Python did not set it
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
